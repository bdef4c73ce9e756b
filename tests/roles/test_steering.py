"""A running batch is paused, resumed, limited and given another deadline, over real workers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from nightmill.core.batch import Batch, Status
from nightmill.core.outcome import Answered, Outcome
from nightmill.core.steering import Change, Pause, Resume, SetConcurrency, SetDeadline
from nightmill.roles.worker import Worker
from tests.roles.conftest import Mill, answer, request_line, request_lines


@pytest.fixture
def mill(folder_mill: Mill) -> Mill:
    worker = folder_mill.settings.worker.model_copy(update={"lines_per_segment": 10})
    folder_mill.settings = folder_mill.settings.model_copy(update={"worker": worker})
    return folder_mill


class Upstreams:
    """Answers while `gate` is open; counts what was sent, and the most attempts in flight of each batch."""

    def __init__(self) -> None:
        self.sent = Counter[str]()
        self.in_flight = Counter[str]()
        self.most = Counter[str]()
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, _endpoint: str, body: bytes) -> Outcome:
        custom_id = str(json.loads(body)["messages"][0]["content"])
        name = custom_id.partition("-")[0]
        self.sent[custom_id] += 1
        self.in_flight[name] += 1
        self.most[name] = max(self.most[name], self.in_flight[name])
        try:
            await asyncio.sleep(0.001)
            await self.gate.wait()
        finally:
            self.in_flight[name] -= 1
        return answer()


def lines(name: str, count: int) -> bytes:
    return b"".join(request_line(f"{name}-{number}") for number in range(count))


async def steer(mill: Mill, batch: Batch, change: Change) -> None:
    assert await mill.store.steering.change(batch.project_id, batch.id, [change]) is not None
    mill.notifier.notify()


async def ended(mill: Mill, *batches: Batch) -> bool:
    return all([(await mill.now(batch)).status.is_terminal for batch in batches])


async def run_all(mill: Mill, workers: list[Worker], *, until: Callable[[], Awaitable[bool]]) -> None:
    """Runs the first worker with the other roles, and the other workers beside them."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for worker in workers[1:]:
            group.create_task(worker.run(stop, grace_s=lambda: 0.0))
        await mill.run(workers[0], until=until)
        stop.set()


async def each_line_once(mill: Mill, batch: Batch, upstreams: Upstreams, count: int) -> None:
    batch = await mill.now(batch)
    assert (batch.status, batch.tally.completed) == (Status.COMPLETED, count)
    rows = await mill.rows(batch.output_file_id)
    assert len({row["custom_id"] for row in rows}) == len(rows) == count
    assert set(upstreams.sent.values()) == {1}


async def test_a_paused_batch_sends_nothing_more_and_goes_on_when_it_is_resumed(mill: Mill):
    upstreams = Upstreams()
    batch = await mill.accepted(lines("a", 55))
    worker = mill.worker(upstreams.send, slots=4)
    sent_when_quiet = 0

    async def step() -> bool:
        nonlocal sent_when_quiet
        now = await mill.now(batch)
        if now.status is Status.IN_PROGRESS and now.paused_at is None and not sent_when_quiet:
            upstreams.gate.clear()
            if upstreams.in_flight["a"] == 4:
                await steer(mill, batch, Pause())
        elif now.paused_at is not None and not upstreams.gate.is_set():
            # The worker learns of the pause while attempts are in flight, and they are answered.
            if all(segment.stopped_by for segment in worker._segments.values()):
                upstreams.gate.set()
        elif now.paused_at is not None and not worker._segments:
            backlog = await mill.store.batches.backlog()
            if backlog.leased_segments:
                return False  # being released
            now = await mill.now(batch)
            assert backlog.waiting_segments == 0
            assert now.tally.answered == upstreams.sent.total() < 55
            assert now.status is Status.IN_PROGRESS
            sent_when_quiet = upstreams.sent.total()
            await steer(mill, batch, Resume())
        return await ended(mill, batch)

    await mill.run(worker, until=step)
    assert sent_when_quiet
    await each_line_once(mill, batch, upstreams, 55)


async def test_a_batch_that_was_paused_before_its_validation_is_not_sent(mill: Mill):
    upstreams = Upstreams()
    paused = await mill.batch_of(lines("paused", 5))
    await steer(mill, paused, Pause())
    await mill.intake().turn()
    other = await mill.accepted(lines("other", 5))
    await mill.run_to_the_end(mill.worker(upstreams.send), other)
    assert (await mill.now(paused)).status is Status.IN_PROGRESS
    assert not upstreams.most["paused"]


async def test_a_paused_batch_that_is_cancelled_with_lines_in_flight_ends(mill: Mill):
    upstreams = Upstreams()
    worker_settings = mill.settings.worker.model_copy(update={"cancel_grace_s": 0.05})
    mill.settings = mill.settings.model_copy(update={"worker": worker_settings})
    batch = await mill.accepted(lines("a", 30))
    worker = mill.worker(upstreams.send, slots=4)
    upstreams.gate.clear()

    async def step() -> bool:
        now = await mill.now(batch)
        if now.paused_at is None and upstreams.in_flight["a"] == 4:
            await steer(mill, batch, Pause())
        elif now.status is Status.IN_PROGRESS and any(s.stopped_by for s in worker._segments.values()):
            await mill.cancel(batch)
        return await ended(mill, batch)

    await mill.run(worker, until=step)
    assert (await mill.now(batch)).status is Status.CANCELLED
    assert upstreams.sent.total() == 4


async def test_a_paused_batch_expires_at_its_deadline(mill: Mill):
    upstreams = Upstreams()
    batch = await mill.batch_of(lines("a", 3))
    await steer(mill, batch, Pause())
    await mill.intake().turn()
    await steer(mill, batch, SetDeadline(int(time.time()) + 2))
    await mill.run_to_the_end(mill.worker(upstreams.send), batch)
    assert (await mill.now(batch)).status is Status.EXPIRED
    assert not upstreams.sent


async def test_the_last_answers_of_a_paused_batch_complete_it(mill: Mill):
    upstreams = Upstreams()
    batch = await mill.accepted(lines("a", 4))
    upstreams.gate.clear()

    async def step() -> bool:
        if (await mill.now(batch)).paused_at is None and upstreams.in_flight["a"] == 4:
            await steer(mill, batch, Pause())
            upstreams.gate.set()
        return await ended(mill, batch)

    await mill.run(mill.worker(upstreams.send, slots=4), until=step)
    await each_line_once(mill, batch, upstreams, 4)


async def test_a_later_deadline_reaches_segments_that_are_leased(mill: Mill):
    upstreams = Upstreams()
    batch = await mill.accepted(lines("a", 30), window_s=3_600)
    worker = mill.worker(upstreams.send, slots=2)
    upstreams.gate.clear()
    later = batch.expires_at + 1_000

    async def step() -> bool:
        if not worker._segments:
            return False
        if (await mill.now(batch)).expires_at != later:
            await steer(mill, batch, SetDeadline(later))
        leased = list(worker._segments.values())
        queued = worker._dispatcher.supply.batches
        return all(s.lease.deadline == s.batch.deadline == later for s in leased) and all(
            known.deadline == later for known in queued
        )

    await mill.run(worker, until=step)


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_limited_batch_never_has_more_attempts_in_flight_over_all_workers(mill: Mill, workers: int):
    upstreams = Upstreams()
    batch = await mill.accepted(lines("a", 120), concurrency=3)
    other = await mill.accepted(lines("b", 120))
    fleet = [mill.worker(upstreams.send, slots=8, name=f"worker_{n}") for n in range(workers)]
    await run_all(mill, fleet, until=lambda: ended(mill, batch, other))
    assert upstreams.most["a"] == 3
    assert upstreams.most["b"] > 3
    await each_line_once(mill, batch, upstreams, 120)


async def test_a_limited_batch_with_all_its_lines_at_work_does_not_hold_up_others(mill: Mill):
    gate = asyncio.Event()
    held = 0

    async def send(_endpoint: str, body: bytes) -> Outcome:
        nonlocal held
        if "a-" in str(json.loads(body)["messages"][0]["content"]):
            held += 1
            await gate.wait()
        await asyncio.sleep(0)
        return answer()

    limited = await mill.accepted(lines("a", 100), concurrency=2)
    other = await mill.accepted(lines("b", 300))

    async def other_has_ended() -> bool:
        return await ended(mill, other)

    await mill.run(mill.worker(send, slots=4), until=other_has_ended)
    assert held == 2
    assert (await mill.now(limited)).status is Status.IN_PROGRESS


async def test_a_limit_is_set_and_removed_while_workers_hold_the_batch(mill: Mill):
    upstreams = Upstreams()
    batch = await mill.accepted(lines("a", 400))
    fleet = [mill.worker(upstreams.send, slots=6, name=f"worker_{n}") for n in range(2)]
    phase = "free"

    def holders() -> int:
        return sum(any(not s.is_over for s in worker._segments.values()) for worker in fleet)

    async def step() -> bool:
        nonlocal phase
        segments = [s for worker in fleet for s in worker._segments.values()]
        if phase == "free" and holders() == 2:
            upstreams.gate.clear()
            await steer(mill, batch, SetConcurrency(2))
            phase = "releasing"
        elif phase == "releasing" and segments and all(s.stopped_by for s in segments if s.cap is None):
            upstreams.gate.set()
            phase = "limiting"
        elif phase == "limiting" and segments and all(s.cap is not None for s in segments):
            upstreams.most.clear()
            phase = "limited"
            before = upstreams.sent.total()
            phase_ends.append(before + 40)
        elif phase == "limited" and upstreams.sent.total() >= phase_ends[0]:
            assert upstreams.most["a"] <= 2
            await steer(mill, batch, SetConcurrency(None))
            phase = "free again"
        return await ended(mill, batch)

    phase_ends: list[int] = []
    await run_all(mill, fleet, until=step)
    assert phase == "free again"
    assert upstreams.most["a"] > 2
    await each_line_once(mill, batch, upstreams, 400)


async def test_failed_lines_of_a_limited_batch_keep_their_place(mill: Mill):
    failed: set[str] = set()
    in_flight = most = 0

    async def send(_endpoint: str, body: bytes) -> Outcome:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        text = str(body)
        if text not in failed and len(failed) < 10:
            failed.add(text)
            return Answered(500, b"{}")
        return answer()

    batch = await mill.accepted(request_lines(40), concurrency=2)
    [batch] = await mill.run_to_the_end(mill.worker(send), batch)
    assert (batch.tally.completed, most) == (40, 2)
