"""Limits on the work per thousand lines: statements, syncs, writes, tasks. No time is measured.

Commits wait for the end of a segment, and heartbeats are delayed, so that the counts do not depend on the
speed of the machine. A limit is a little above the measured count; a higher count means that a change added
work for each line or each segment, which needs a reason.
"""

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from bench import inputs, stubs
from nightmill.core.batch import Batch, Status
from nightmill.core.outcome import Answered, Outcome
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.roles.loop import Notifier
from nightmill.runtime.components import Components, open_components
from nightmill.settings import load
from nightmill.store.migrate import migrate
from nightmill.upstream.registry import UpstreamRegistry, start_upstream

LINES = 4_000
PER_SEGMENT = 500
SEGMENTS = LINES // PER_SEGMENT
PROJECT = ProjectId("default")
BATCH = BatchId("batch_" + "0" * 32)
ANSWER = inputs.answer()


class InstantUpstream:
    """Answers in the next iteration of the event loop, with a new object for each answer."""

    def start(
        self,
        tag: Any,
        endpoint: str,  # noqa: ARG002 - the port's
        body: bytes,  # noqa: ARG002 - the port's
        *,
        timeout_s: float,  # noqa: ARG002 - the port's
        on_outcome: Callable[[Any, Outcome], None],
    ) -> None:
        answer = Answered(200, bytes(bytearray(ANSWER)))
        asyncio.get_running_loop().call_soon(on_outcome, tag, answer)

    def give_up(self, *_: object) -> None:
        raise AssertionError("nothing is given up here")

    async def send(self, *_: object, **__: object) -> Outcome:
        raise AssertionError("an upstream that tells its outcomes is not awaited")

    async def models(self) -> bytes | None:
        return None

    async def close(self) -> None:
        return


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts statements, syncs, writes and tasks of all threads until the context ends."""
    counts: Counter[str] = Counter()
    with monkeypatch.context() as patched:

        def count(owner: object, name: str, what: str) -> None:
            real = getattr(owner, name)

            def counting(*args: object, **kwargs: object) -> object:
                counts[what] += 1
                return real(*args, **kwargs)

            patched.setattr(owner, name, counting)

        for name in ("fsync", "fdatasync"):
            count(os, name, "syncs")
        for name in ("write", "pwrite"):
            count(os, name, "writes")
        loop = asyncio.get_running_loop()
        for name, what in (
            ("run_in_executor", "trips to a thread"),
            ("create_task", "tasks"),
            ("call_at", "timers"),
        ):
            count(type(loop), name, what)

        def statement(*_: object) -> None:
            counts["statements"] += 1

        def committed(*_: object) -> None:
            counts["transactions"] += 1

        event.listen(Engine, "before_cursor_execute", statement)
        event.listen(Engine, "commit", committed)
        try:
            yield counts
        finally:
            event.remove(Engine, "before_cursor_execute", statement)
            event.remove(Engine, "commit", committed)


@asynccontextmanager
async def components_with_a_batch(
    folder: Path, *, lines: int
) -> AsyncGenerator[tuple[Components, asyncio.Event, list[object]]]:
    """Real store, blobs and parts in one process, with a batch in `validating`.

    Also an event that is set when other processes are notified, and the list of all emitted events.
    """
    path = inputs.input_file(folder, lines)
    waits = {"commit_interval_s": 600.0, "beat_s": 600.0, "lease_ttl_s": 3_600.0}
    flags = {
        "folder": str(folder / "data"),
        "worker": {"lines_per_segment": PER_SEGMENT, **waits},
        "upstream": {"url": "http://127.0.0.1:9/v1"},
        "retention": {"free_bytes": 0},
    }
    settings = load(flags=flags, environment={})
    settings.folder.mkdir(parents=True)
    await migrate(settings.store_url)
    events: list[object] = []
    notified = asyncio.Event()
    async with open_components(settings, emit=events.append, notifier=Notifier(notified.set)) as components:
        writer = await components.blobs.open_writer("files/input")
        await writer.write(path.read_bytes())
        await writer.commit()
        now = int(time.time())
        batch = Batch(
            id=BATCH,
            project_id=PROJECT,
            endpoint="/v1/chat/completions",
            input_file_id=FileId("file-input"),
            input_blob_key="files/input",
            completion_window="24h",
            created_at=now,
            expires_at=now + 86_400,
        )
        await components.store.batches.create(batch)
        yield components, notified, events


async def answer_all(components: Components, notified: asyncio.Event) -> None:
    settings = components.settings
    upstream = start_upstream(
        InstantUpstream(),
        settings=settings.upstream.model_copy(update={"concurrency": 64}),
        worker=settings.worker,
        shared_name="upstream",
    )
    worker = components.worker(UpstreamRegistry(upstream))
    stop = asyncio.Event()
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        group.create_task(worker.run(stop, grace_s=lambda: 0.0))
        while not await components.store.batches.settled():
            async with asyncio.timeout(60):
                await notified.wait()
            notified.clear()
        stop.set()
        components.notifier.notify_local()


async def join(components: Components) -> None:
    finalizer = components.finalizer()
    while await status(components) is not Status.COMPLETED:
        await finalizer.turn()


async def status(components: Components) -> Status:
    batch = await components.store.batches.get(PROJECT, BATCH)
    assert batch is not None
    return batch.status


def assert_at_most(found: Counter[str], limits: dict[str, int]) -> None:
    over = {
        name: f"{count}, at most {limits.get(name, 0)}"
        for name, count in found.items()
        if count > limits.get(name, 0)
    }
    assert not over, f"more work than before: {over}; all: {dict(found)}"


async def test_intake_does_no_work_for_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with components_with_a_batch(tmp_path, lines=LINES) as (components, _notified, _):
        with counted(monkeypatch) as found:
            await components.intake().turn()
        assert await status(components) is Status.IN_PROGRESS
    assert_at_most(
        found, {"statements": 15, "transactions": 5, "syncs": 6, "writes": 3, "trips to a thread": 21}
    )


async def test_a_worker_does_its_work_for_each_segment_and_not_for_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with components_with_a_batch(tmp_path, lines=LINES) as (components, notified, events):
        await components.intake().turn()
        with counted(monkeypatch) as found:
            await answer_all(components, notified)
    assert_at_most(
        found,
        {
            "statements": 14 * SEGMENTS,
            "transactions": 4 * SEGMENTS,
            "syncs": 2 * SEGMENTS + 4,
            "writes": SEGMENTS + 2,
            "trips to a thread": 7 * SEGMENTS,
            "tasks": 3 * SEGMENTS,
            "timers": 5 * SEGMENTS,
        },
    )
    assert len(events) <= 3 * SEGMENTS, "events are for segments and batches, not for lines"


async def test_a_finalizer_reads_each_segment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with components_with_a_batch(tmp_path, lines=LINES) as (components, notified, _):
        await components.intake().turn()
        await answer_all(components, notified)
        with counted(monkeypatch) as found:
            await join(components)
    assert_at_most(
        found,
        {
            "statements": 31,  # two of them write the history, one looks for webhooks
            "transactions": 12,
            "syncs": 4,
            "writes": 6,
            "trips to a thread": 6 * SEGMENTS,
        },
    )


async def test_no_object_is_kept_for_a_line(tmp_path: Path):
    """Memory blocks in use after the batch: as many after 500 lines as after 4,000."""
    kept: list[int] = []
    for lines in (PER_SEGMENT, PER_SEGMENT, LINES):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        async with components_with_a_batch(folder, lines=lines) as (components, notified, _):
            await components.intake().turn()
            gc.collect()
            before = sys.getallocatedblocks()
            await answer_all(components, notified)
            await join(components)
            gc.collect()
            kept.append(sys.getallocatedblocks() - before)
    assert kept[2] - kept[1] < LINES / 4, f"memory blocks that were kept: {kept}"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_line_costs_one_write_and_one_read_of_the_upstream(tmp_path: Path):
    """System calls of a whole `nightmill run`: roles and client in one process."""
    lines, report = 2_000, tmp_path / "strace"
    path = inputs.input_file(tmp_path, lines)
    run = [sys.executable, "-m", "nightmill", "run", str(path), "--upstream"]
    with stubs.slow(mean_s=0.0) as stub:
        ended = subprocess.run(
            ["strace", "-f", "-c", "-o", str(report), *run, stub.url],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
    if "ptrace" in ended.stderr:
        pytest.skip("this machine does not let strace look")
    assert ended.returncode == 0, ended.stderr
    rows = [row.split() for row in report.read_text().splitlines() if row.strip()[:1].isdigit()]
    calls = {row[-1]: int(row[3]) for row in rows}
    sent = sum(calls.get(name, 0) for name in ("write", "writev", "sendto", "sendmsg"))
    assert lines <= sent <= 1.2 * lines, calls
    assert calls["read"] <= 1.2 * lines + 4_000, calls
    assert calls["epoll_ctl"] <= 1_000, calls
