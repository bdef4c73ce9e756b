"""A worker that was paused, has a wrong clock, or resumes late cannot add, remove or duplicate an answer.

The opposite is tested as well: without a fence, the proof fails.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nightmill.core.batch import Batch, Status, Tally
from nightmill.core.outcome import Answered
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Lease, PinnedPart, Segment, SegmentReport
from nightmill.emulator.answers import answer
from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId
from nightmill.parts import FolderParts, PartRecord, Parts, standing_records
from nightmill.settings import as_message
from nightmill.store import Store, open_store
from nightmill_torture.proof import (
    NOT_ENDED,
    SETTLED_CHANGED,
    Expected,
    Found,
    Proof,
    Variety,
    prove,
    repeated,
)
from nightmill_torture.upstream import emulator
from tests.roles.conftest import ENDPOINT, Mill
from tests.slow import only_slow
from tests.store_doubles import with_verb

LIMIT_S = 60


def bodies_of(count: int) -> dict[str, bytes]:
    return {
        f"line-{number}": b'{"model": "m", "messages": [{"content": "marker:line-%d"}]}' % number
        for number in range(count)
    }


def input_of(bodies: dict[str, bytes]) -> bytes:
    row = b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n'
    return b"".join(row % (name.encode(), ENDPOINT.encode(), body) for name, body in bodies.items())


async def proof_of(
    mill: Mill, batch: Batch, bodies: dict[str, bytes], *, markers: Sequence[str], settled: dict[str, str]
) -> Proof:
    batch = await mill.now(batch)
    counts = (batch.total, batch.tally.completed, batch.tally.failed)
    found = Found(
        status=batch.status,
        counts=counts,
        output=await mill.rows(batch.output_file_id),
        error=await mill.rows(batch.error_file_id),
    )
    expected = Expected(batch_id=batch.id, variety=Variety.PLAIN, endpoint=ENDPOINT, bodies=bodies)
    proof = Proof()
    prove(proof, [expected], {batch.id: found}, markers=markers, settled=settled)
    return proof


# --- with real processes ---------------------------------------------------------------------------------


class Child:
    """A role process, started as the supervisor starts it, but without a supervisor that notices its end."""

    def __init__(self, mill: Mill, url: str, *roles: str) -> None:
        upstream = mill.settings.upstream.model_copy(update={"url": url, "concurrency": 8})
        settings = mill.settings.model_copy(update={"upstream": upstream})
        worker_id = f"worker_{roles[0]}_{time.monotonic_ns()}"
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nightmill.runtime.child", "roles", worker_id, *roles],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(as_message(settings).encode() + b"\n")
        self._child.stdin.flush()

    def send(self, signal_number: int) -> None:
        os.kill(self._child.pid, signal_number)

    def end(self) -> int:
        assert self._child.stdin is not None
        self._child.send_signal(signal.SIGCONT)
        self._child.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        return self._child.wait(LIMIT_S)


@pytest.fixture
def child(mill: Mill) -> Iterator[Callable[..., Child]]:
    with contextlib.ExitStack() as stack:

        def start(url: str, *roles: str) -> Child:
            one = Child(mill, url, *roles)
            stack.callback(one.end)
            return one

        yield start


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - it looks at other processes
            await asyncio.sleep(0.01)


@only_slow
async def test_a_worker_that_was_paused_and_resumes_late_changes_nothing(
    mill: Mill, tmp_path: Path, child: Callable[..., Child]
) -> None:
    bodies = bodies_of(60)
    batch = await mill.accepted(input_of(bodies))
    async with emulator(tmp_path, delay_s=0.05) as (url, record):
        paused_worker = child(url, "worker:0")

        async def has_counted() -> bool:
            return (await mill.now(batch)).tally.answered >= 8

        await until(has_counted)
        await pause_between_transactions(mill, paused_worker)
        settled = await on_disk(mill, batch)
        assert 8 <= len(settled) < 60
        child(url, "worker:0")
        child(url, "intake", "finalizer", "maintenance")

        async def was_taken_over() -> bool:
            return any(result.token > 1 for result in await mill.store.segments.results(batch.id))

        await until(was_taken_over)
        paused_worker.send(signal.SIGCONT)

        async def has_ended() -> bool:
            return (await mill.now(batch)).status.is_terminal

        await until(has_ended)
        record.take()
        proof = await proof_of(mill, batch, bodies, markers=record.markers, settled=settled)
    assert proof.is_kept, proof.examples
    assert (
        repeated(record.markers) <= 8 + 8
    )  # lines in flight, and lines not yet on disk, when the worker was paused


async def pause_between_transactions(mill: Mill, worker: Child) -> None:
    """A worker that is paused during a write keeps the lock of SQLite and would block every other process."""
    other = open_store(mill.settings.store_url, busy_timeout_s=0.1)
    try:
        while True:
            worker.send(signal.SIGSTOP)
            try:
                await other.segments.release_expired()
            except UnavailableError:
                worker.send(signal.SIGCONT)
                await asyncio.sleep(0.013)
            else:
                return
    finally:
        await other.close()


async def on_disk(mill: Mill, batch: Batch) -> dict[str, str]:
    """custom_id -> request id of every answer that the next lease holder will find."""
    settled: dict[str, str] = {}
    parts = mill.parts()
    for path in (mill.folder / "parts" / batch.id).iterdir():
        number, token, _ = path.name.split(".")
        segment = Segment(batch.id, int(number), 0, 0)
        found = await parts.find(segment, below=int(token) + 1)
        async for record in standing_records(parts, found):
            row = json.loads(record.output.text)
            settled[row["custom_id"]] = row["response"]["request_id"]
    await parts.close()
    return settled


async def test_a_worker_whose_clock_jumped_sends_nothing_before_its_lease_is_confirmed(mill: Mill) -> None:
    bodies = bodies_of(40)
    batch = await mill.accepted(input_of(bodies))
    jumped_s = 0.0
    sent_after_jump: list[bytes] = []
    renewals_since_jump = 0
    renew = mill.store.segments.renew

    async def counted_renew(*arguments: Any, **named: Any) -> Any:
        nonlocal renewals_since_jump
        reply = await renew(*arguments, **named)
        renewals_since_jump += bool(jumped_s)
        return reply

    async def send(endpoint: str, body: bytes) -> Any:
        nonlocal jumped_s
        if jumped_s and not renewals_since_jump:
            sent_after_jump.append(body)
        if body == bodies["line-10"]:
            jumped_s = 3_600.0
        return await answering(endpoint, body)

    worker = mill.worker(
        send,
        slots=1,
        monotonic=lambda: time.monotonic() + jumped_s,
        store=with_verb(mill.store, "segments", "renew", counted_renew),
    )
    (ended,) = await mill.run_to_the_end(worker, batch)
    assert ended.status is Status.COMPLETED
    assert jumped_s
    assert sent_after_jump == []
    assert [row["custom_id"] for row in await mill.rows(ended.output_file_id)] == list(bodies)


async def answering(endpoint: str, body: bytes) -> Any:
    return Answered(200, answer(endpoint, body).body, "emulated-1")


# --- without a fence -------------------------------------------------------------------------------------


class PastThePin(FolderParts):
    """Reads the whole of a part, including records written after another worker had taken over."""

    async def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[Sequence[PartRecord]]:
        whole = [replace(part, length_bytes=(self._root / part.key).stat().st_size) for part in parts]
        async for records in super().read(whole):
            yield records


def ignoring_tokens(store: Store) -> Store:
    """Completes a segment for every caller, whichever worker holds its lease."""

    async def complete(lease: Lease, report: SegmentReport, parts: Sequence[PinnedPart]) -> bool:
        results = await store.segments.results(lease.segment.batch_id)
        token = results[lease.segment.number].token
        return await store.segments.complete(replace(lease, token=token), replace(report, token=token), parts)

    return with_verb(store, "segments", "complete", complete)


@dataclass
class Answers:
    """The upstream of a scripted run: records the lines that were sent, and numbers the answers."""

    bodies: dict[str, bytes]
    markers: list[str]

    def next_for(self, ordinal: int) -> OutputLine:
        name = f"line-{ordinal}"
        self.markers.append(name)
        body = json.loads(answer(ENDPOINT, self.bodies[name]).body)
        response = {"status_code": 200, "request_id": f"emulated-{len(self.markers)}", "body": body}
        row = {"id": f"{ordinal}", "custom_id": name, "response": response, "error": None}
        return OutputLine(text=json.dumps(row).encode() + b"\n", is_error=False, usage=None)


async def late_writer_after_takeover(mill: Mill, *, store: Store, reader: Parts) -> Proof:
    """Worker A answers two of five lines; B takes the segment over; then A answers the other lines too."""
    bodies = bodies_of(5)
    answers = Answers(bodies, [])
    batch = await mill.accepted(input_of(bodies))
    parts = mill.parts()
    settled: dict[str, str] = {}

    async def settle(lease: Lease, *ordinals: int, counts: bool) -> Any:
        if lease.token not in writers:
            writers[lease.token] = parts.open(lease.segment, lease.token)
        writer = writers[lease.token]
        for ordinal in ordinals:
            writer.append(ordinal, answers.next_for(ordinal))
            if counts:
                settled[f"line-{ordinal}"] = f"emulated-{len(answers.markers)}"
        await writer.flush()
        return writer

    writers: dict[int, Any] = {}
    (of_a,) = await store.segments.lease(WorkerId("a"), limit=1, ttl_s=0.01)
    await settle(of_a, 0, 1, counts=True)
    await asyncio.sleep(0.02)
    assert await store.segments.release_expired() == 1
    (of_b,) = await store.segments.lease(WorkerId("b"), limit=1, ttl_s=30)
    pinned = tuple(await parts.find(of_b.segment, below=of_b.token))
    assert await store.segments.pin_parts(of_b, pinned, SegmentReport(batch.id, 0, of_b.token, Tally(2)))
    by_b = await settle(of_b, 2, 3, counts=True)

    by_a = await settle(of_a, 2, 3, 4, counts=False)
    whole = Tally(5)
    await store.segments.complete(of_a, SegmentReport(batch.id, 0, of_a.token, whole), (by_a.pinned,))

    await settle(of_b, 4, counts=True)
    await store.segments.complete(of_b, SegmentReport(batch.id, 0, of_b.token, whole), (*pinned, by_b.pinned))
    finalizer = mill.finalizer()
    finalizer._store = store
    finalizer._joiner._parts = reader
    finalizer._joiner._store = store
    with contextlib.suppress(RuntimeError):
        for _ in range(3):
            await finalizer.turn()
    await parts.close()
    return await proof_of(mill, batch, bodies, markers=answers.markers, settled=settled)


async def test_a_worker_that_writes_after_a_takeover_adds_nothing(mill: Mill) -> None:
    proof = await late_writer_after_takeover(mill, store=mill.store, reader=mill.parts())
    assert proof.is_kept, proof.examples


async def test_the_proof_fails_when_parts_are_read_past_their_pin(mill: Mill) -> None:
    reader = PastThePin(mill.folder / "parts", commit_interval_s=0.0, buffer_bytes=1)
    proof = await late_writer_after_takeover(mill, store=mill.store, reader=reader)
    assert proof.breaches[SETTLED_CHANGED] or proof.breaches[NOT_ENDED], proof.breaches


async def test_the_proof_fails_when_tokens_are_ignored(mill: Mill) -> None:
    store = ignoring_tokens(mill.store)
    proof = await late_writer_after_takeover(mill, store=store, reader=mill.parts())
    assert not proof.is_kept
    assert proof.breaches[NOT_ENDED] or proof.breaches[SETTLED_CHANGED]
