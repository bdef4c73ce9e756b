"""A fleet of real processes on one machine: an API server, a keeper and any number of workers."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine
from bench.fleet_postgres import Postgres
from bench.fleet_storage import Storage
from bench.server import Server, end_child, wait_until_ready
from bench.stubs import free_port

_KEEPERS = "intake,finalizer,maintenance"


@dataclass(slots=True)
class Fleet:
    """`pids` names every process of nightmill: api, keeper, worker 0, ..., and the two parents."""

    server: Server
    postgres: Postgres
    storage: Storage
    store: str
    workers: int
    pids: dict[str, int] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by part."""
        used: dict[str, float] = {}
        for name, pid in self.pids.items():
            part = name.split()[0]
            used[part] = used.get(part, 0.0) + machine.cpu_s(pid)
        return {**used, "postgres": self.postgres.cpu_s(), "s3": self.storage.cpu_s()}


@contextmanager
def running_fleet(
    postgres: Postgres,
    storage: Storage,
    *,
    upstream: str,
    workers: int,
    concurrency: int,
    source: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Fleet]:
    """A fleet over a fresh database, ready to take batches."""
    store, port = postgres.fresh(), free_port()
    variables = {
        **os.environ,
        "NIGHTMILL_STORE": store,
        "NIGHTMILL_LOG_LEVEL": "warning",
        "NIGHTMILL_RETENTION__FREE_BYTES": "0",
        "NIGHTMILL_RETENTION__SWEEP_S": "3600",  # blobs are counted before they are deleted
        "NIGHTMILL_LIMITS__INPUT_FILE_BYTES": str(1 << 34),
        "NIGHTMILL_LIMITS__LINES_PER_FILE": str(1 << 30),
        "NIGHTMILL_LIMITS__BATCHES_PER_HOUR": "0",
        "NIGHTMILL_UPSTREAM__URL": upstream,
        "NIGHTMILL_UPSTREAM__CONCURRENCY": str(concurrency),
        **storage.environment,
        **(environment or {}),
    }
    if source is not None:
        variables["PYTHONPATH"] = str(source)
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "nightmill", *words]
            child = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
            stack.callback(end_child, child, within_s=40)
            return child

        api = start("serve", "--workers", "0", "--port", str(port))
        server = Server(port, api.pid)
        wait_until_ready(server, api)
        keeper = start("work", "--roles", _KEEPERS)
        worker_host = start("work", "--roles", "worker", "--workers", str(workers))
        fleet = Fleet(server, postgres, storage, store, workers)
        fleet.pids = {"api": api.pid, "parents 0": keeper.pid, "parents 1": worker_host.pid}
        _find(fleet, [keeper, worker_host])
        yield fleet


def _find(fleet: Fleet, parents: list["subprocess.Popen[bytes]"]) -> None:
    """Finds the children that run the roles."""
    until = time.monotonic() + 30
    while True:
        for parent in parents:
            if parent.poll() is not None:
                raise RuntimeError(f"nightmill work ended with {parent.returncode}")
            for child in machine.children(parent.pid):
                name = machine.name(child)
                if number := re.fullmatch(r"worker:(\d+)", name):
                    fleet.pids[f"worker {number[1]}"] = child
                elif name == "intake":
                    fleet.pids["keeper"] = child
        if len(fleet.pids) == fleet.workers + 4:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"expected {fleet.workers} workers and a keeper, found {fleet.pids}")
        time.sleep(0.02)
