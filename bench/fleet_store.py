"""A store with a million waiting segments that many processes use at once."""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.fleet_postgres import Postgres
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.segment import Segment
from nightmill.ids import BatchId, FileId, ProjectId, WorkerId
from nightmill.store import open_store
from nightmill.store.migrate import migrate

LINES_PER_SEGMENT = 500
_KEEPER = WorkerId("keeper")
_SCRIPT = Path(__file__).with_name("fleet_leases.py")


def filled(url: str, *, batches: int, segments: int) -> float:
    """Creates the schema and the batches with their segments, as intake does; returns segments per second."""
    return asyncio.run(_filled(url, batches, segments))


async def _filled(url: str, batches: int, segments: int) -> float:
    await migrate(url)
    store = open_store(url, busy_timeout_s=60)
    now, total = int(time.time()), segments * LINES_PER_SEGMENT
    began = time.perf_counter()
    try:
        for number in range(batches):
            made = Batch(
                id=BatchId(f"batch_{number:032x}"),
                project_id=ProjectId("default"),
                endpoint="/v1/chat/completions",
                input_file_id=FileId("file-in"),
                input_blob_key=f"files/{number}",
                completion_window="24h",
                created_at=now,
                expires_at=now + 86_400,
            )
            await store.batches.create(made)
            lease = await store.batch_leases.lease((Status.VALIDATING,), _KEEPER, ttl_s=600)
            assert lease is not None
            after = replace(made.after(Event.ACCEPTED, now=now), model="bench", total=total)
            cut = [
                Segment(made.id, place, place * LINES_PER_SEGMENT, LINES_PER_SEGMENT)
                for place in range(total // LINES_PER_SEGMENT)
            ]
            await store.batch_leases.accept(lease, after, index_blob_key=f"indexes/{number}", segments=cut)
    finally:
        await store.close()
    return batches * segments / (time.perf_counter() - began)


def backlog_ms(url: str, *, times: int) -> float:
    """Median time of the backlog query of an autoscaler, in milliseconds."""

    async def ask() -> list[float]:
        store = open_store(url)
        took: list[float] = []
        try:
            for _ in range(times):
                began = time.perf_counter()
                await store.batches.backlog()
                took.append(time.perf_counter() - began)
        finally:
            await store.close()
        return took

    return sorted(asyncio.run(ask()))[times // 2] * 1e3


def run_workers(
    url: str,
    what: str,
    *,
    processes: int,
    seconds: float,
    amount: int,
    postgres: Postgres | None = None,
    source: Path | None = None,
) -> dict[str, Any]:
    """Runs `processes` processes of `fleet_leases` at once; returns the rate and the cost of each turn."""
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    with ExitStack() as stack:
        children: list[subprocess.Popen[str]] = []
        for number in range(processes):
            words = [sys.executable, str(_SCRIPT), url, what, str(seconds), str(number), str(amount)]
            child = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.callback(child.wait, timeout=60)
            stack.callback(child.kill)
            children.append(child)
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process at '{what}' did not begin")
        server_s = postgres.cpu_s() if postgres else 0.0
        written = postgres.written_bytes() if postgres else 0
        with machine.watched({str(child.pid): child.pid for child in children}) as used:
            for child in children:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
            results = [json.loads(child.stdout.readline()) for child in children if child.stdout is not None]
        server_s = postgres.cpu_s() - server_s if postgres else 0.0
        written = postgres.written_bytes() - written if postgres else 0
    done = sum(one["done"] for one in results)
    return {
        "what": what,
        "processes": processes,
        "amount": amount,
        "per_s": sum(one["done"] / one["wall_s"] for one in results),
        "p50_ms": max(one["p50_ms"] for one in results),
        "p99_ms": max(one["p99_ms"] for one in results),
        "client_us": sum(one["cpu_s"] for one in results) / done * 1e6,
        "server_us": server_s / done * 1e6,
        "written_bytes": written / done,
        "foreign_share": max(0.0, used.foreign_share - server_s / used.wall_s / machine.cores()),
    }
