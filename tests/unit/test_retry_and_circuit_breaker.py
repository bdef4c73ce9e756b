"""Verdicts, backoff and the breaker: every branch, on a clock that is a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.circuit_breaker import CircuitBreaker, Paused, Resumed
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
BURNING = [Broken("reset"), TimedOut(600.0), NOT_JSON, *[Answered(status, b"") for status in PASSING]]


@pytest.mark.parametrize("status", FINAL)
def test_what_can_never_fare_better_settles_at_once(status):
    assert judged(Answered(status, b"{}")) == Settle()


@pytest.mark.parametrize("outcome", BURNING)
def test_what_may_fare_better_is_tried_again_and_burns_an_attempt(outcome):
    assert judged(outcome, attempts=3) == Retry(after_s=1.0, burns=1)


@pytest.mark.parametrize("outcome", BURNING)
def test_after_the_last_attempt_a_line_settles_with_what_it_got(outcome):
    assert judged(outcome, attempts=7) == Retry(after_s=16.0, burns=1)
    assert judged(outcome, attempts=8) == Settle()
    assert judged(outcome, attempts=8, deadline=0.0) == Settle()


@pytest.mark.parametrize("outcome", [Broken("reset"), TimedOut(600.0)])
def test_a_break_on_a_reused_connection_counts_as_half_an_attempt_unless_an_answer_follows(outcome):
    gone = Broken("gone")
    twice = sent_again(outcome, first=gone)
    assert judged(twice, attempts=6) == Retry(after_s=8.0, burns=1.5)
    assert judged(twice, attempts=7.5) == Settle()
    away = sent_again(Unreachable("refused"), first=gone)
    assert judged(away, attempts=6) == Retry(after_s=8.0, burns=0.5)
    assert judged(away, attempts=8.5) == Settle()
    assert sent_again(OK, first=gone) is OK


@pytest.mark.parametrize("outcome", BLAMELESS)
def test_an_upstream_that_is_away_or_busy_burns_no_attempt(outcome):
    decision = judged(outcome, attempts=8)
    assert isinstance(decision, Retry)
    assert not decision.burns


def test_retry_after_is_obeyed_with_a_little_jitter_on_top():
    assert judged(Throttled(429, b"", 20.0), random=0.0) == Retry(after_s=20.0, burns=0)
    assert judged(Throttled(429, b"", 20.0), random=0.5) == Retry(after_s=21.0, burns=0)


def test_retry_after_stays_within_sane_bounds():
    assert judged(Throttled(429, b"", -3.0), random=0.0) == Retry(after_s=0.0, burns=0)
    assert judged(Throttled(429, b"", 86_400.0), random=0.0) == Retry(after_s=RETRY_AFTER_CAP_S, burns=0)


@pytest.mark.parametrize("outcome", [*BLAMELESS, *BURNING])
def test_no_retry_is_scheduled_past_the_deadline(outcome):
    assert judged(outcome, now=100.0, deadline=100.0) == Expire()
    assert judged(Throttled(429, b"", 5.0), now=100.0, deadline=104.0) == Expire()


def test_an_answer_in_hand_settles_even_after_the_deadline():
    assert judged(Answered(200, b"{}"), now=200.0, deadline=100.0) == Settle()


@given(attempts=st.integers(1, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_negative_and_never_above_its_cap(attempts, random):
    assert 0 <= backoff_s(attempts, random=random) <= BACKOFF_CAP_S


def test_broken_and_timed_out_say_what_the_caller_reads():
    assert (Broken.code, TimedOut.code) == ("upstream_broken", "request_timeout")
    assert TimedOut(600.0).message == "The model server gave no whole answer within 600 seconds."
    assert Broken("reset").message == "The model server gave no usable answer: reset."


OK = Answered(200, b"{}")
DOWN = Unreachable("connection refused")


def noted(breaker, outcome, *, now=0.0, random=0.5):
    return breaker.note(outcome, now=now, random=random)


def test_a_new_gate_is_open_and_answers_keep_it_so():
    breaker = CircuitBreaker()
    assert breaker.wait_s(0.0) == 0.0
    breaker.sent(0.0)
    assert noted(breaker, OK) is None
    assert (breaker.wait_s(1.0), breaker.reason, breaker.held) == (0.0, "", False)


def test_an_unreachable_upstream_closes_the_gate_at_once():
    breaker = CircuitBreaker()
    moved = noted(breaker, DOWN, random=0.0)
    assert moved == Paused("connection refused", pytest.approx(0.1))
    assert breaker.wait_s(0.0) == pytest.approx(0.1)
    assert breaker.reason == "connection refused"
    assert not breaker.held


def test_what_was_in_flight_when_the_gate_closed_does_not_make_the_pause_grow():
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


def test_a_probe_that_takes_long_is_joined_by_another():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    breaker.sent(1.0)
    assert breaker.wait_s(5.9) == pytest.approx(0.1)
    assert breaker.wait_s(6.0) == 0.0


def test_an_answered_probe_opens_the_gate_and_says_so():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    breaker.sent(1.0)
    assert noted(breaker, OK, now=2.0) == Resumed()
    assert (breaker.wait_s(2.0), breaker.reason) == (0.0, "")


def test_a_failed_probe_closes_it_again():
    breaker = CircuitBreaker()
    noted(breaker, DOWN, random=0.0)
    breaker.sent(1.0)
    noted(breaker, DOWN, now=1.0, random=0.0)
    assert breaker.wait_s(1.0) == pytest.approx(0.1)


def test_an_hour_of_silence_is_told_now_and_then_not_at_every_probe():
    breaker, now, told = CircuitBreaker(), 0.0, 0
    while now < 3_600:
        told += isinstance(noted(breaker, DOWN, now=now, random=0.5), Paused)
        now += breaker.wait_s(now) + 0.001
    assert 1 < told < 400


def test_an_earlier_answer_opens_a_gate_closed_by_one_failed_connection():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    assert noted(breaker, OK) == Resumed()


@pytest.mark.parametrize("trouble", [Broken("reset"), TimedOut(1.0), Answered(502, b""), Answered(522, b"")])
def test_sixteen_troubles_in_a_row_close_the_gate(trouble):
    breaker = CircuitBreaker()
    for _ in range(15):
        assert noted(breaker, trouble) is None
    assert breaker.wait_s(0.0) == 0.0
    assert isinstance(noted(breaker, trouble), Paused)
    assert breaker.wait_s(0.0) > 0.0


@pytest.mark.parametrize(
    "sign_of_life", [OK, Answered(500, b""), Throttled(429, b"", None), Answered(401, b"")]
)
def test_any_sign_of_life_starts_the_count_of_troubles_afresh(sign_of_life):
    breaker = CircuitBreaker()
    noted(breaker, OK)
    for _ in range(15):
        noted(breaker, Broken("reset"))
    noted(breaker, sign_of_life)
    for _ in range(15):
        assert noted(breaker, Broken("reset"), now=1_000.0) is None


def test_a_probe_that_breaks_closes_the_gate_again():
    breaker = CircuitBreaker()
    noted(breaker, DOWN)
    breaker.sent(1.0)
    noted(breaker, Broken("reset"), now=1.0)
    assert breaker.wait_s(1.0) > 0.0


def test_retry_after_closes_the_gate_for_so_long_and_then_opens_it_wide():
    breaker = CircuitBreaker()
    moved = noted(breaker, Throttled(429, b"", 30.0))
    assert moved == Paused("it asks for patience (429)", 30.0)
    assert breaker.wait_s(0.0) == 30.0
    breaker.sent(30.0)
    assert breaker.wait_s(30.0) == 0.0
    assert noted(breaker, OK, now=31.0) == Resumed()


def test_an_answer_sent_for_earlier_does_not_cut_short_the_patience_asked_for():
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


def test_without_retry_after_the_pause_is_short_grows_and_is_not_worth_a_word():
    breaker = CircuitBreaker()
    assert noted(breaker, Throttled(429, b"", None), random=0.999_999) is None
    assert breaker.wait_s(0.0) == pytest.approx(0.2, rel=0.01)
    noted(breaker, Throttled(429, b"", None), now=1.0, random=0.999_999)
    assert breaker.wait_s(1.0) == pytest.approx(0.4, rel=0.01)
    assert noted(breaker, OK, now=2.0) is None
    noted(breaker, Throttled(429, b"", None), now=3.0, random=0.999_999)
    assert breaker.wait_s(3.0) == pytest.approx(0.2, rel=0.01)


def test_a_throttled_upstream_that_goes_away_is_away():
    breaker = CircuitBreaker()
    noted(breaker, Throttled(429, b"", 2.0))
    assert isinstance(noted(breaker, DOWN, now=1.0), Paused)
    assert breaker.wait_s(1.0) == 1.0
    assert breaker.reason == "connection refused"


def test_an_upstream_that_comes_back_busy_is_busy():
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
    assert isinstance(judged(outcome, attempts=8), Retry)


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


def test_a_held_upstream_opens_when_the_key_is_accepted():
    breaker = CircuitBreaker()
    noted(breaker, Answered(401, b""))
    breaker.sent(10.0)
    assert breaker.wait_s(10.0) > 0.0
    assert noted(breaker, OK, now=11.0) == Resumed()
    assert not breaker.held
    assert breaker.judge(Answered(401, b"")) == Answered(401, b"")


def test_patience_asked_for_does_not_end_a_hold():
    breaker = CircuitBreaker()
    noted(breaker, Answered(401, b""))
    noted(breaker, Throttled(429, b"", 50.0), now=40.0)
    assert breaker.held
    assert breaker.wait_s(40.0) == 50.0


def test_a_gate_judges_nothing_but_refusals():
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
def test_whatever_happens_the_gate_lets_something_through_within_ten_minutes(steps):
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
