"""What follows for one line after an attempt: every branch, on a clock that is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.outcome import (
    NOT_JSON,
    Answered,
    Broken,
    Refused,
    Throttled,
    TimedOut,
    Unreachable,
    sent_again,
)
from nightmill.core.retry import BACKOFF_CAP_S, RETRY_AFTER_CAP_S, Expire, Retry, Settle, backoff_s, verdict


def judged(outcome, *, attempts=1, max_attempts=8, now=0.0, deadline=math.inf, random=0.5):
    return verdict(
        outcome, attempts=attempts, max_attempts=max_attempts, now=now, deadline=deadline, random=random
    )


FINAL = [200, 201, 204, 301, 308, 400, 401, 403, 404, 405, 413, 415, 418, 422, 451]
PASSING = [408, 409, 425, 500, 502, 503, 504, 529]
BLAMELESS = [
    Throttled(429, b"", None),
    Throttled(503, b"", 2.0),
    Unreachable("connection refused"),
    Refused(401),
]
COUNTED = [Broken("reset"), TimedOut(600.0), NOT_JSON, *[Answered(status, b"") for status in PASSING]]


@pytest.mark.parametrize("status", FINAL)
def test_an_answer_that_a_retry_cannot_change_settles_at_once(status):
    assert judged(Answered(status, b"{}")) == Settle()


@pytest.mark.parametrize("outcome", COUNTED)
def test_an_outcome_that_may_change_is_retried_and_counts_as_an_attempt(outcome):
    assert judged(outcome, attempts=3) == Retry(after_s=1.0, burns=1)


@pytest.mark.parametrize("outcome", COUNTED)
def test_after_the_last_attempt_a_line_settles_with_its_last_outcome(outcome):
    assert judged(outcome, attempts=7) == Retry(after_s=16.0, burns=1)
    assert judged(outcome, attempts=8) == Settle()
    assert judged(outcome, attempts=8, deadline=0.0) == Settle()


@pytest.mark.parametrize("outcome", [Broken("reset"), TimedOut(600.0)])
def test_a_break_on_a_reused_connection_counts_as_half_an_attempt_unless_an_answer_follows(outcome):
    gone, ok = Broken("gone"), Answered(200, b"{}")
    twice = sent_again(outcome, first=gone)
    assert judged(twice, attempts=6) == Retry(after_s=8.0, burns=1.5)
    assert judged(twice, attempts=7.5) == Settle()
    away = sent_again(Unreachable("refused"), first=gone)
    assert judged(away, attempts=6) == Retry(after_s=8.0, burns=0.5)
    assert judged(away, attempts=8.5) == Settle()
    assert sent_again(ok, first=gone) is ok


@pytest.mark.parametrize("outcome", BLAMELESS)
def test_an_upstream_that_is_unreachable_or_busy_costs_a_line_no_attempt(outcome):
    decision = judged(outcome, attempts=8)
    assert isinstance(decision, Retry)
    assert not decision.burns


def test_retry_after_is_obeyed_with_a_little_jitter_on_top():
    assert judged(Throttled(429, b"", 20.0), random=0.0) == Retry(after_s=20.0, burns=0)
    assert judged(Throttled(429, b"", 20.0), random=0.5) == Retry(after_s=21.0, burns=0)


def test_retry_after_is_bounded():
    assert judged(Throttled(429, b"", -3.0), random=0.0) == Retry(after_s=0.0, burns=0)
    assert judged(Throttled(429, b"", 86_400.0), random=0.0) == Retry(after_s=RETRY_AFTER_CAP_S, burns=0)


@pytest.mark.parametrize("outcome", [*BLAMELESS, *COUNTED])
def test_no_retry_is_scheduled_past_the_deadline(outcome):
    assert judged(outcome, now=100.0, deadline=100.0) == Expire()
    assert judged(Throttled(429, b"", 5.0), now=100.0, deadline=104.0) == Expire()


def test_an_answer_settles_even_after_the_deadline():
    assert judged(Answered(200, b"{}"), now=200.0, deadline=100.0) == Settle()


@given(attempts=st.integers(1, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_negative_and_never_above_its_cap(attempts, random):
    assert 0 <= backoff_s(attempts, random=random) <= BACKOFF_CAP_S
