"""The canary: the first lines are sent alone, and decide what becomes of the others."""

import time
from typing import Any

from nightmill.core.batch import Status
from nightmill.core.batch_options import BatchOptions
from nightmill.core.canary import Canary, CanaryState
from nightmill.core.history import EventKind
from nightmill.core.outcome import Answered
from nightmill.roles.canary_watch import CanaryWatch
from tests.roles.conftest import Mill, request_lines

CANARY = BatchOptions(canary=6, canary_max_failed=0.5)


def watch_of(mill: Mill) -> CanaryWatch:
    return CanaryWatch(store=mill.store, notifier=mill.notifier, emit=mill.events.append, clock=time.time)


class Answers:
    """Answers requests, and notes which."""

    def __init__(self, *, failing: int) -> None:
        self.asked: list[bytes] = []
        self._failing = failing

    async def __call__(self, _: str, body: bytes) -> Answered:
        self.asked.append(body)
        return Answered(400 if len(self.asked) <= self._failing else 200, b'{"choices":[]}', "r")


async def run_canary(mill: Mill, answers: Answers, options: BatchOptions = CANARY) -> Any:
    """The batch once its canary lines are answered, before the observer looks."""
    batch = await mill.accepted(request_lines(40), options=options)

    async def is_answered() -> bool:
        return (await mill.now(batch)).tally.answered >= options.canary

    await mill.run(mill.worker(answers), until=is_answered)
    return await mill.now(batch)


async def test_only_the_canary_lines_are_sent_until_the_observer_has_looked(mill: Mill) -> None:
    answers = Answers(failing=1)
    batch = await run_canary(mill, answers)
    assert len(answers.asked) == 6
    assert (batch.status, batch.tally.answered, batch.total) == (Status.IN_PROGRESS, 6, 40)
    assert batch.canary_segments is not None
    assert await mill.store.canaries.counted(batch) == Canary(6, 5, 1, 0.5)

    watch = watch_of(mill)
    await watch.look()
    await watch_of(mill).look()  # of another observer
    batch = await mill.now(batch)
    assert batch.canary_segments is None
    kinds = [event.kind for event in await mill.store.batch_events.list(batch.id)]
    assert kinds.count(EventKind.CANARY_PASSED) == 1
    (ended,) = await mill.run_to_the_end(mill.worker(answers), batch)
    assert (ended.status, ended.tally.completed, ended.tally.failed) == (Status.COMPLETED, 39, 1)
    assert await mill.store.canaries.counted(ended) == Canary(6, 5, 1, 0.5)


async def test_a_canary_of_which_too_many_lines_fail_stops_the_batch_and_says_so(mill: Mill) -> None:
    answers = Answers(failing=4)
    batch = await run_canary(mill, answers)
    await watch_of(mill).look()
    await watch_of(mill).look()
    (ended,) = await mill.run_to_the_end(mill.worker(answers), batch)
    assert ended.status is Status.CANCELLED
    assert ended.stop_reason is not None
    assert ended.stop_reason.code == "canary_failed"
    assert ended.stop_reason.message == "4 of its first 6 lines failed, and 50% may."
    assert len(answers.asked) == 6
    errors = await mill.rows(ended.error_file_id)
    stopped = [row for row in errors if row["response"] is None]
    assert len(stopped) == 34
    assert all("4 of its first 6 lines failed" in row["error"]["message"] for row in stopped)
    assert len(errors) + len(await mill.rows(ended.output_file_id)) == 40
    events = await mill.store.batch_events.list(batch.id)
    (event,) = [event for event in events if event.kind is EventKind.STOPPED]
    assert event.detail["canary"] == {"lines": 6, "completed": 2, "failed": 4, "max_failed": 0.5}


async def test_other_batches_run_while_a_canary_waits_to_be_decided(mill: Mill) -> None:
    answers = Answers(failing=0)
    held = await run_canary(mill, answers)
    other = await mill.accepted(request_lines(20))
    (ended,) = await mill.run_to_the_end(mill.worker(answers), other)
    assert ended.status is Status.COMPLETED
    assert (await mill.now(held)).tally.answered == 6


async def test_a_canary_as_long_as_the_batch_holds_nothing_back(mill: Mill) -> None:
    batch = await mill.accepted(request_lines(6), options=CANARY)
    assert batch.canary_segments is None
    assert await mill.store.canaries.running() == []


def test_a_canary_is_decided_as_soon_as_too_many_lines_have_failed() -> None:
    assert Canary(20, 0, 2, 0.1).state is CanaryState.RUNNING
    assert Canary(20, 0, 3, 0.1).state is CanaryState.STOPPED
    assert Canary(20, 18, 2, 0.1).state is CanaryState.PASSED
    assert Canary(20, 19, 0, 0.0).state is CanaryState.RUNNING
