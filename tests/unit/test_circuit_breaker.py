"""The circuit breaker of one upstream, on a clock that is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.circuit_breaker import CircuitBreaker, Paused, Resumed
from nightmill.core.outcome import Answered, Broken, Refused, Throttled, TimedOut, Unreachable
from nightmill.core.retry import RETRY_AFTER_CAP_S, Retry, verdict

OK = Answered(200, b"{}")
DOWN = Unreachable("connection refused")


def noted(breaker, outcome, *, now=0.0, random=0.5):
    return breaker.note(outcome, now=now, random=random)


def test_a_new_breaker_is_closed_and_answers_keep_it_closed():
    breaker = CircuitBreaker()
    assert breaker.wait_s(0.0) == 0.0
    breaker.sent(0.0)
    assert noted(breaker, OK) is None
    assert (breaker.wait_s(1.0), breaker.reason, breaker.held) == (0.0, "", False)


def test_an_unreachable_upstream_opens_the_breaker_at_once():
    breaker = CircuitBreaker()
    moved = noted(breaker, DOWN, random=0.0)
    assert moved == Paused("connection refused", pytest.approx(0.1))
    assert breaker.wait_s(0.0) == pytest.approx(0.1)
    assert breaker.reason == "connection refused"
    assert not breaker.held


def test_attempts_in_flight_when_the_breaker_opened_do_not_make_the_pause_grow():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.999)
    waited = breaker.wait_s(0.0)
    for _ in range(500):
        assert noted(breaker, DOWN, random=0.999) is None
    assert breaker.wait_s(0.0) == waited


def test_the_pause_of_a_dead_upstream_grows_to_half_a_minute_and_no_further():
    breaker, now, pauses = CircuitBreaker(), 0.0, []
    for _ in range(40):
        noted(breaker, DOWN, now=now, random=0.999_999)
        pauses.append(breaker.wait_s(now))
        now += pauses[-1] + 0.001
    assert pauses[:4] == [pytest.approx(seconds, rel=0.01) for seconds in (0.2, 0.4, 0.8, 1.6)]
    assert pauses[-1] == pytest.approx(30.0, rel=0.01)


def test_half_open_lets_one_probe_through_at_a_time():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    assert breaker.wait_s(1.0) == 0.0
    breaker.sent(1.0)
    assert breaker.wait_s(1.0) == 0.25


def test_a_second_probe_joins_a_slow_one():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    breaker.sent(1.0)
    assert breaker.wait_s(5.9) == pytest.approx(0.1)
    assert breaker.wait_s(6.0) == 0.0


def test_an_answered_probe_closes_the_breaker_and_is_announced():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    breaker.sent(1.0)
    assert noted(breaker, OK, now=2.0) == Resumed()
    assert (breaker.wait_s(2.0), breaker.reason) == (0.0, "")


def test_a_failed_probe_opens_the_breaker_again():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    breaker.sent(1.0)
    noted(breaker, DOWN, now=1.0, random=0.0)
    assert breaker.wait_s(1.0) == pytest.approx(0.1)


def test_an_hour_without_answers_is_announced_now_and_then_and_not_at_every_probe():
    breaker, now, announced = CircuitBreaker(), 0.0, 0
    while now < 3_600:
        announced += isinstance(noted(breaker, DOWN, now=now, random=0.5), Paused)
        now += breaker.wait_s(now) + 0.001
    assert 1 < announced < 400


def test_an_earlier_answer_closes_a_breaker_opened_by_one_failed_connection():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    assert noted(breaker, OK) == Resumed()


@pytest.mark.parametrize("failure", [Broken("reset"), TimedOut(1.0), Answered(502, b""), Answered(522, b"")])
def test_sixteen_failures_in_a_row_open_the_breaker(failure):
    breaker = CircuitBreaker()
    for _ in range(15):
        assert noted(breaker, failure) is None
    assert breaker.wait_s(0.0) == 0.0
    assert isinstance(noted(breaker, failure), Paused)
    assert breaker.wait_s(0.0) > 0.0


@pytest.mark.parametrize("answer", [OK, Answered(500, b""), Throttled(429, b"", None), Answered(401, b"")])
def test_any_real_answer_starts_the_count_of_failures_afresh(answer):
    breaker = CircuitBreaker()
    noted(breaker, OK)
    for _ in range(15):
        noted(breaker, Broken("reset"))
    noted(breaker, answer)
    for _ in range(15):
        assert noted(breaker, Broken("reset"), now=1_000.0) is None


def test_a_probe_that_breaks_opens_the_breaker_again():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    breaker.sent(1.0)
    noted(breaker, Broken("reset"), now=1.0)
    assert breaker.wait_s(1.0) > 0.0


def test_retry_after_opens_the_breaker_for_that_time_and_then_closes_it_fully():
    breaker = CircuitBreaker()
    moved = noted(breaker, Throttled(429, b"", 30.0))
    assert moved == Paused("it asks for a pause (429)", 30.0)
    assert breaker.wait_s(0.0) == 30.0
    breaker.sent(30.0)
    assert breaker.wait_s(30.0) == 0.0
    assert noted(breaker, OK, now=31.0) == Resumed()


def test_the_answer_to_an_earlier_request_does_not_shorten_a_retry_after():
    breaker = CircuitBreaker()
    noted(breaker, Throttled(429, b"", 30.0))
    assert noted(breaker, OK, now=1.0) is None
    assert breaker.wait_s(1.0) == 29.0


def test_a_later_retry_after_makes_the_pause_longer_never_shorter():
    breaker = CircuitBreaker()
    noted(breaker, Throttled(429, b"", 10.0))
    noted(breaker, Throttled(503, b"", 30.0), now=1.0)
    noted(breaker, Throttled(429, b"", 1.0), now=2.0)
    noted(breaker, Throttled(429, b"", None), now=2.0)
    assert breaker.wait_s(2.0) == 29.0


def test_without_retry_after_the_pause_is_short_grows_and_is_not_announced():
    breaker = CircuitBreaker()
    assert noted(breaker, Throttled(429, b"", None), random=0.999_999) is None
    assert breaker.wait_s(0.0) == pytest.approx(0.2, rel=0.01)
    noted(breaker, Throttled(429, b"", None), now=1.0, random=0.999_999)
    assert breaker.wait_s(1.0) == pytest.approx(0.4, rel=0.01)
    assert noted(breaker, OK, now=2.0) is None
    noted(breaker, Throttled(429, b"", None), now=3.0, random=0.999_999)
    assert breaker.wait_s(3.0) == pytest.approx(0.2, rel=0.01)


def test_a_throttled_upstream_that_becomes_unreachable_is_down():
    breaker = CircuitBreaker()
    noted(breaker, Throttled(429, b"", 2.0))
    assert isinstance(noted(breaker, DOWN, now=1.0), Paused)
    assert breaker.wait_s(1.0) == 1.0
    assert breaker.reason == "connection refused"


def test_an_upstream_that_comes_back_with_429_is_throttled():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    noted(breaker, Throttled(429, b"", 2.0), now=1.0)
    assert breaker.wait_s(1.0) == 2.0
    breaker.sent(3.0)
    assert breaker.wait_s(3.0) == 0.0


@pytest.mark.parametrize("status", [401, 403, 407, 301, 302, 307, 308])
def test_a_refusal_before_anything_was_accepted_holds_the_batch(status):
    breaker = CircuitBreaker()
    moved = noted(breaker, Answered(status, b""))
    assert isinstance(moved, Paused)
    assert str(status) in moved.reason
    assert breaker.held
    outcome = breaker.judge(Answered(status, b""))
    assert outcome == Refused(status)
    ruling = verdict(outcome, attempts=8, max_attempts=8, now=0.0, deadline=math.inf, random=0.5)
    assert isinstance(ruling, Retry)


def test_a_single_refusal_among_answers_settles():
    breaker = CircuitBreaker()
    for _ in range(100):
        noted(breaker, OK)
        assert noted(breaker, Answered(403, b"")) is None
        assert breaker.judge(Answered(403, b"")) == Answered(403, b"")
    assert not breaker.held


def test_a_key_revoked_in_the_middle_costs_three_lines_and_no_more():
    breaker, settled = CircuitBreaker(), 0
    noted(breaker, OK)
    for _ in range(1_000):
        noted(breaker, Answered(401, b""))
        settled += isinstance(breaker.judge(Answered(401, b"")), Answered)
    assert settled == 3
    assert breaker.held


def test_a_rejected_line_shows_that_the_key_is_accepted_but_a_fault_does_not():
    breaker = CircuitBreaker()
    noted(breaker, Answered(400, b""))
    noted(breaker, Answered(401, b""))
    assert not breaker.held
    breaker = CircuitBreaker()
    noted(breaker, Answered(500, b""))
    noted(breaker, Answered(401, b""))
    assert breaker.held


def test_the_hold_ends_when_the_key_is_accepted():
    breaker = CircuitBreaker()
    noted(breaker, Answered(401, b""))
    breaker.sent(10.0)
    assert breaker.wait_s(10.0) > 0.0
    assert noted(breaker, OK, now=11.0) == Resumed()
    assert not breaker.held
    assert breaker.judge(Answered(401, b"")) == Answered(401, b"")


def test_a_retry_after_does_not_end_a_hold():
    breaker = CircuitBreaker()
    noted(breaker, Answered(401, b""))
    noted(breaker, Throttled(429, b"", 50.0), now=40.0)
    assert breaker.held
    assert breaker.wait_s(40.0) == 50.0


def test_the_breaker_changes_no_outcome_but_refusals():
    breaker = CircuitBreaker()
    for outcome in (OK, DOWN, Answered(404, b""), Broken("reset")):
        assert breaker.judge(outcome) is outcome


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    OK,
                    DOWN,
                    Answered(401, b""),
                    Answered(502, b""),
                    Answered(500, b""),
                    Broken("x"),
                    TimedOut(1),
                    Throttled(429, b"", None),
                    Throttled(503, b"", 1000000000.0),
                ]
            ),
            st.floats(0, 700),
            st.floats(0, 1, exclude_max=True),
        ),
        max_size=60,
    )
)
def test_after_any_outcomes_an_attempt_passes_within_ten_minutes(steps):
    breaker, now = CircuitBreaker(), 0.0
    for outcome, passed_s, random in steps:
        now += passed_s
        breaker.note(outcome, now=now, random=random)
        assert 0.0 <= breaker.wait_s(now) <= RETRY_AFTER_CAP_S + 0.001
    later = now + RETRY_AFTER_CAP_S + 0.001
    assert breaker.wait_s(later) == 0.0
    breaker.note(OK, now=later, random=0.0)
    assert breaker.wait_s(later) == 0.0
    assert breaker.reason == ""
