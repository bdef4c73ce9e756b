"""A batch that has spent a budget is cancelled with its answers so far, and its files say why."""

import time

import pytest

from nightmill.core.batch import Status
from nightmill.core.batch_options import BatchOptions, StopReason
from nightmill.core.history import EventKind
from nightmill.core.outcome import Answered
from nightmill.core.prices import Price
from nightmill.roles.budgets import BudgetWatch
from tests.roles.conftest import answer, request_lines

REFUSED = Answered(400, b'{"error": {"message": "no", "type": "invalid_request_error", "code": "no"}}')


def watch_of(mill, prices=None) -> BudgetWatch:
    return BudgetWatch(
        mill.store, prices=prices or {}, notifier=mill.notifier, emit=mill.events.append, wall=time.time
    )


async def stopped(mill, send, options, prices=None):
    """The batch once it has ended; the watch looks between any two steps of the worker."""
    batch = await mill.accepted(request_lines(100), options=options)
    watch = watch_of(mill, prices)

    async def has_ended() -> bool:
        await watch.look()
        return (await mill.now(batch)).status.is_terminal

    await mill.run(mill.worker(send, slots=2), until=has_ended)
    return await mill.now(batch)


async def slowly(mill, outcome):
    """An answer that waits until the answers before it are counted, so that a budget can be seen as spent."""
    await mill.notifier.wait(since=mill.notifier.count, timeout_s=0.05)
    return outcome


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (BatchOptions(max_failures=5), "max_failures"),
        (BatchOptions(max_failures=0.05), "max_failures"),
    ],
)
async def test_too_many_failures_stop_a_batch(mill, options, code):
    batch = await stopped(mill, lambda *_: slowly(mill, REFUSED), options)
    assert batch.status is Status.CANCELLED
    assert batch.stop_reason is not None
    assert batch.stop_reason.code == code
    errors = await mill.rows(batch.error_file_id)
    assert len(errors) == 100
    answered = [row for row in errors if row["response"]]
    unanswered = [row["error"] for row in errors if row["error"]]
    assert len(answered) > 5
    assert unanswered
    assert {error["code"] for error in unanswered} == {"batch_cancelled"}
    assert unanswered[0]["message"].endswith(f"the batch was stopped: {batch.stop_reason.message}")
    kinds = [event.kind for event in await mill.store.batch_events.list(batch.id)]
    assert kinds.count(EventKind.STOPPED) == 1
    assert kinds.index(EventKind.CANCELLING) < kinds.index(EventKind.CANCELLED)


async def test_output_tokens_and_cost_stop_a_batch(mill):
    def send(*_):
        return slowly(mill, answer(prompt_tokens=1, completion_tokens=10, total_tokens=11))

    by_tokens = await stopped(mill, send, BatchOptions(max_output_tokens=50))
    by_cost = await stopped(mill, send, BatchOptions(max_cost=0.5), {"m": Price(output=10_000)})
    assert [it.stop_reason and it.stop_reason.code for it in (by_tokens, by_cost)] == [
        "max_output_tokens",
        "max_cost",
    ]
    for batch in (by_tokens, by_cost):
        assert batch.status is Status.CANCELLED
        outputs, errors = await mill.rows(batch.output_file_id), await mill.rows(batch.error_file_id)
        assert len(outputs) + len(errors) == 100
        assert len(outputs) == batch.tally.completed > 5


async def test_a_batch_within_its_budgets_or_without_any_is_left_alone(mill):
    within = await mill.accepted(request_lines(3), options=BatchOptions(max_failures=3, max_cost=0.0))
    without = await mill.accepted(request_lines(3))

    async def send(*_):
        return REFUSED

    watch = watch_of(mill)

    async def have_ended() -> bool:
        await watch.look()
        return all([(await mill.now(it)).status.is_terminal for it in (within, without)])

    await mill.run(mill.worker(send), until=have_ended)
    for batch in [await mill.now(it) for it in (within, without)]:
        assert (batch.status, batch.stop_reason, batch.tally.failed) == (Status.COMPLETED, None, 3)


async def test_a_stop_that_comes_too_late_changes_nothing(mill):
    """The batch moved on between the look and the write."""
    batch = await mill.accepted(request_lines(2), options=BatchOptions(max_failures=0))
    cancelled = await mill.cancel(batch)
    assert not await mill.store.batches.stop(
        cancelled, StopReason("max_failures", "late"), expected=Status.IN_PROGRESS
    )
    assert (await mill.now(batch)).stop_reason is None
