from dataclasses import replace
from itertools import product

import pytest

from nightmill.core.batch import TERMINAL, TRANSITIONS, Batch, Event, Status, Tally, Usage
from nightmill.errors import ConflictError
from nightmill.ids import BatchId, FileId, ProjectId

EXPECTED = {
    ("validating", "accepted"): "in_progress",
    ("validating", "rejected"): "failed",
    ("validating", "cancel_requested"): "cancelling",
    ("in_progress", "settled"): "finalizing",
    ("in_progress", "lapsed"): "finalizing",
    ("in_progress", "cancel_requested"): "cancelling",
    ("finalizing", "completed"): "completed",
    ("finalizing", "expired"): "expired",
    ("cancelling", "cancelled"): "cancelled",
}


def a_batch(status: Status = Status.VALIDATING, *, created_at: int = 1_000) -> Batch:
    return Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("default"),
        endpoint="/v1/chat/completions",
        input_file_id=FileId("file-1"),
        input_blob_key="files/file-1",
        completion_window="24h",
        created_at=created_at,
        expires_at=created_at + 86_400,
        status=status,
    )


@pytest.mark.parametrize(("status", "event"), list(product(Status, Event)))
def test_the_whole_grid_of_statuses_and_events(status: Status, event: Event):
    expected = EXPECTED.get((status.value, event.value))
    if expected is None:
        with pytest.raises(ConflictError):
            a_batch(status).after(event, now=2_000)
        return
    after = a_batch(status).after(event, now=2_000)
    assert after.status == expected
    assert getattr(after, f"{expected}_at") == 2_000
    changed = {name for name in Batch.__slots__ if getattr(after, name) != getattr(a_batch(status), name)}
    assert changed == {"status", f"{expected}_at"}


def test_nothing_leaves_a_terminal_status():
    assert {status.value for status in TERMINAL} == {"failed", "completed", "expired", "cancelled"}
    assert not [pair for pair in TRANSITIONS if pair[0] in TERMINAL]


def test_every_status_can_be_reached_and_left_unless_terminal():
    assert set(TRANSITIONS.values()) | {Status.VALIDATING} == set(Status)
    assert {status for status, _ in TRANSITIONS} | TERMINAL == set(Status)


def test_stamps_never_run_backwards_when_the_clock_does():
    batch = a_batch(created_at=5_000).after(Event.ACCEPTED, now=4_000)
    assert batch.in_progress_at == 5_000
    batch = batch.after(Event.SETTLED, now=6_000).after(Event.COMPLETED, now=10)
    assert (batch.finalizing_at, batch.completed_at) == (6_000, 6_000)


def test_stamps_are_whole_seconds():
    assert a_batch().after(Event.ACCEPTED, now=1_234.9).in_progress_at == 1_234


def test_the_text_for_a_cancel_that_comes_too_late_is_openais():
    with pytest.raises(ConflictError, match=r"^Cannot cancel a batch with status 'completed'\.$") as caught:
        a_batch(Status.COMPLETED).after(Event.CANCEL_REQUESTED, now=1)
    assert caught.value.headers == {"x-should-retry": "false"}


def test_tallies_add_up_field_by_field():
    one = Tally(2, 1, Usage(10, 1, 5, 2, 15))
    assert one.plus(one) == Tally(4, 2, Usage(20, 2, 10, 4, 30))
    assert one.answered == 3
    assert replace(a_batch(), tally=one).tally.plus(Tally()) == one


def test_four_statuses_are_final():
    assert {status for status in Status if status.is_terminal} == {
        Status.FAILED,
        Status.COMPLETED,
        Status.EXPIRED,
        Status.CANCELLED,
    }
