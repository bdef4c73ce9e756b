"""What makes a worker pause, and that it goes on by itself: a disk without room, a store that is away."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from nightmill.core.batch import Status
from nightmill.core.outcome import Answered, Outcome
from nightmill.errors import UnavailableError
from nightmill.parts import FolderParts
from nightmill.telemetry import WritingPaused, WritingResumed
from tests.faults.conftest import FaultyMill
from tests.roles.conftest import LIMIT_S, answer, request_lines
from tests.store_doubles import with_verb


@pytest.fixture
def transport() -> str:
    return "lean"


async def until(holds: Callable[[], bool]) -> None:
    """For a condition that has no notification."""
    while not holds():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.005)


class FullParts(FolderParts):
    """Parts on a disk that a test fills and empties."""

    is_full = False

    def _shortage(self) -> str | None:
        return "the disk is full" if self.is_full else None


def full_parts(mill: FaultyMill) -> FullParts:
    return FullParts(mill.folder / "parts", commit_interval_s=0.002, buffer_bytes=1 << 20, retry_s=0.02)


async def test_nothing_is_sent_while_answers_cannot_be_written_and_all_of_it_afterwards(mill: FaultyMill):
    parts = full_parts(mill)
    sent = Counter[bytes]()
    moments: list[float] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[body] += 1
        moments.append(time.monotonic())
        if sent[body] == 1 and len(sent) % 3 == 0:
            # A line to be sent again, which would come due while the disk is full.
            return Answered(429, b"{}", retry_after_s=0.15)
        if len(sent) == 20 and sent[body] == 1:
            parts.is_full = True
        await asyncio.sleep(0.005)
        return answer()

    batch = await mill.accepted(request_lines(60))
    spans: list[tuple[float, float]] = []
    heartbeats = 0

    async def renew(*arguments: Any, **named: Any) -> Any:
        nonlocal heartbeats
        reply = await mill.store.segments.renew(*arguments, **named)
        heartbeats += 1
        return reply

    async def make_room() -> None:
        await until(lambda: parts.stalled is not None)
        seen = heartbeats
        await until(
            lambda: heartbeats >= seen + 2
        )  # the second began after the stall and reports all answers
        began = time.monotonic()
        before = await mill.now(batch)
        await asyncio.sleep(0.6)
        assert await mill.now(batch) == before
        spans.append((began, time.monotonic()))
        parts.is_full = False

    async with asyncio.TaskGroup() as group:
        group.create_task(make_room())
        store = with_verb(mill.store, "segments", "renew", renew)
        worker = mill.worker(send, parts=parts, slots=4, store=store)
        [ended] = await mill.run_to_the_end(worker, batch)
    assert (ended.status, ended.tally.completed) == (Status.COMPLETED, 60)
    [(began, end)] = spans
    assert [moment for moment in moments if began < moment < end] == []
    kinds = [type(event) for event in mill.events if isinstance(event, WritingPaused | WritingResumed)]
    assert kinds == [WritingPaused, WritingResumed]


async def test_slots_that_found_the_disk_full_wake_when_there_is_room(mill: FaultyMill):
    """They wait for work then, not for room, and there are lines enough for nothing new to be leased."""
    parts = full_parts(mill)
    sent = 0

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        nonlocal sent
        sent += 1
        if sent == 1:
            parts.is_full = True
        # The second one pauses all slots, before the first one's answer is on the full disk.
        return Answered(429, b"{}", retry_after_s=0.3) if sent == 2 else answer()

    async def make_room() -> None:
        await asyncio.sleep(0.6)
        parts.is_full = False

    batch = await mill.accepted(request_lines(40))
    async with asyncio.TaskGroup() as group:
        group.create_task(make_room())
        worker = mill.worker(send, parts=parts, slots=2)
        [ended] = await mill.run_to_the_end(worker, batch)
    assert ended.tally.completed == 40


async def test_past_its_confirmed_lease_it_sends_no_line_again_and_goes_on_once_confirmed(mill: FaultyMill):
    mill.settings = mill.settings.model_copy(
        update={
            "worker": mill.settings.worker.model_copy(update={"lease_ttl_s": 0.3, "lines_per_segment": 40})
        }
    )
    is_away = False

    async def renew(*arguments: Any, **named: Any) -> Any:
        if is_away:
            raise OSError
        return await mill.store.segments.renew(*arguments, **named)

    moments: list[float] = []
    spans: list[tuple[float, float]] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        nonlocal is_away
        moments.append(time.monotonic())
        if len(moments) == 1:
            is_away = True
            return Answered(429, b"{}", retry_after_s=0.5)  # due when the lease is no longer confirmed
        return answer()

    async def come_back() -> None:
        nonlocal is_away
        await until(lambda: is_away)
        await asyncio.sleep(0.4)
        began = time.monotonic()
        await asyncio.sleep(0.6)
        spans.append((began, time.monotonic()))
        is_away = False

    batch = await mill.accepted(request_lines(40))
    worker = mill.worker(send, slots=4, store=with_verb(mill.store, "segments", "renew", renew))
    stop = asyncio.Event()
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        group.create_task(come_back())
        running = group.create_task(worker.run(stop, grace_s=lambda: 0.0))
        while (await mill.now(batch)).tally.completed < 40:
            await mill.notifier.wait(since=mill.notifier.count, timeout_s=0.05)
        stop.set()
        mill.notifier.notify()
        await running
    [(began, end)] = spans
    assert [moment for moment in moments if began < moment < end] == []


async def test_a_segment_that_cannot_be_opened_now_is_given_back_and_opened_later(mill: FaultyMill):
    batch = await mill.accepted(request_lines(20))
    reading = mill.blobs.read
    failures = 0

    async def read(key: str, start: int, length_bytes: int) -> bytes:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise UnavailableError("too many open files", retry_after_s=0)
        return await reading(key, start, length_bytes)

    mill.blobs.read = read  # type: ignore[method-assign]

    async def send(_endpoint: str, _body: bytes) -> Answered:
        return answer()

    mill.settings = mill.settings.model_copy(
        update={"worker": mill.settings.worker.model_copy(update={"lease_ttl_s": 600.0})}
    )
    [ended] = await mill.run_to_the_end(mill.worker(send, slots=2), batch)
    assert ended.tally.completed == 20
    assert failures == 2


async def test_a_drain_ends_though_the_disk_takes_nothing(mill: FaultyMill):
    parts = full_parts(mill)
    parts._write_out = lambda writers, _: ("", [OSError(28, "full") for _ in writers])  # type: ignore[method-assign, misc]
    stop = asyncio.Event()

    async def send(_endpoint: str, _body: bytes) -> Answered:
        return answer()

    batch = await mill.accepted(request_lines(10))
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        running = group.create_task(mill.worker(send, parts=parts).run(stop, grace_s=lambda: 0.1))
        await until(lambda: parts.stalled is not None)
        stop.set()
        mill.notifier.notify()
        await running
    with pytest.raises(UnavailableError, match="their lines are sent again"):
        await parts.close()
    await mill.store.leases.release_all()
    [ended] = await mill.run_to_the_end(mill.worker(send), batch)
    assert ended.tally.completed == 10
