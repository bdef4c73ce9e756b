"""What follows for one line after a failed attempt: every branch, on a clock that is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.failure import (
    BACKOFF_CAP_S,
    PAUSE_FLOOR_S,
    RETRY_AFTER_CAP_S,
    Failure,
    FailureKind,
    backoff_s,
    bounded_s,
)
from nightmill.core.health import LineRecord
from nightmill.core.outcome import Answered, Broken, TimedOut, TooLong, Unreachable, sent_again
from nightmill.core.retry import Expire, Retry, Settle, verdict

NOT_ABOUT_THE_REQUEST = sorted(set(FailureKind) - {FailureKind.REQUEST}, key=lambda kind: kind.name)


def judged(
    kind: FailureKind = FailureKind.FAULT,
    *,
    counted: float = 0.0,
    is_explained: bool = True,
    retry_after_s: float | None = None,
    now: float = 0.0,
    deadline: float = math.inf,
    random: float = 0.5,
):
    return verdict(
        Failure(kind, "why", retry_after_s),
        LineRecord(counted=counted, is_explained=is_explained),
        max_attempts=8,
        now=now,
        deadline=deadline,
        random=random,
    )


def test_a_request_that_can_not_be_answered_settles_at_once():
    assert judged(FailureKind.REQUEST, is_explained=False) == Settle()


@pytest.mark.parametrize("kind", NOT_ABOUT_THE_REQUEST)
def test_a_line_settles_when_as_many_failures_count_as_it_has_retries(kind: FailureKind):
    assert isinstance(judged(kind, counted=6.9), Retry)
    assert judged(kind, counted=7.0) == Settle()
    assert judged(kind, counted=7.0, deadline=0.0) == Settle()


@pytest.mark.parametrize("kind", NOT_ABOUT_THE_REQUEST)
def test_a_line_never_settles_with_a_failure_that_does_not_count(kind: FailureKind):
    assert isinstance(judged(kind, counted=100.0, is_explained=False), Retry)


def test_pauses_grow_with_what_counts():
    after_s = [judged(counted=counted, random=0.999, is_explained=False).after_s for counted in range(9)]
    assert after_s == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], rel=0.01)


def test_retry_after_is_kept_with_a_little_jitter_on_top():
    assert judged(retry_after_s=20.0, random=0.0) == Retry(20.0)
    assert judged(retry_after_s=20.0, random=0.5) == Retry(21.0)
    assert judged(retry_after_s=0.2, counted=6.0, random=0.9).after_s > 20.0  # the longer pause


@pytest.mark.parametrize("kind", NOT_ABOUT_THE_REQUEST)
def test_no_retry_is_scheduled_past_the_deadline(kind: FailureKind):
    assert judged(kind, now=100.0, deadline=100.1) == Expire()
    assert judged(kind, now=100.0, deadline=104.0, retry_after_s=5.0) == Expire()


def test_retry_after_has_a_floor_and_a_cap():
    assert bounded_s(0.0) == bounded_s(-3.0) == PAUSE_FLOOR_S
    assert bounded_s(20.0) == 20.0
    assert bounded_s(86_400.0) == RETRY_AFTER_CAP_S


@given(counted=st.floats(0, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_backoff_lies_between_its_floor_and_its_cap(counted: float, random: float):
    assert PAUSE_FLOOR_S <= backoff_s(counted, random=random) <= BACKOFF_CAP_S


def test_a_break_on_a_reused_connection_counts_as_half_an_attempt_unless_an_answer_follows():
    gone = Broken("gone")
    assert sent_again(Broken("reset"), first=gone) == Broken("reset", counts_as=1.5)
    assert sent_again(TimedOut(5.0), first=gone) == TimedOut(5.0, counts_as=1.5)
    assert sent_again(Unreachable("refused"), first=gone) == Broken("gone", counts_as=0.5)
    for whole in (Answered(200, b"{}"), TooLong(10)):
        assert sent_again(whole, first=gone) is whole
