"""Rate limits of an upstream, each alone over many workers and both together."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.failure import PAUSE_FLOOR_S, RETRY_AFTER_CAP_S
from nightmill.core.outcome import Remaining
from nightmill.core.rate_limit import Rate, RateLimits


@given(
    per_minute=st.integers(1, 6_000),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
    step_s=st.floats(0.05, 3.0),
)
@settings(max_examples=50, deadline=None)
def test_in_any_minute_all_workers_together_pass_no_more_than_the_rate(per_minute, shares, step_s):
    total = sum(shares) or 1.0
    parts = [share / total for share in shares]
    rates = [Rate(per_minute) for _ in parts]
    passed = 0
    now = 0.0
    while now < 60.0:
        for rate, part in zip(rates, parts, strict=True):
            while rate.wait_s(now, share=part) == 0:
                rate.spend(1)
                passed += 1
        now += step_s
    assert passed <= per_minute + len(rates)


def test_a_steady_rate_reaches_the_limit():
    rate, passed, now = Rate(600), 0, 0.0
    while now < 60.0:
        wait_s = rate.wait_s(now, share=1.0)
        if wait_s:
            now += wait_s
            continue
        rate.spend(1)
        passed += 1
    assert 570 <= passed <= 600


def test_an_attempt_that_costs_more_than_estimated_delays_later_attempts():
    rate = Rate(60_000)
    rate.wait_s(0.0, share=1.0)
    assert rate.wait_s(1.0, share=1.0) == 0.0
    rate.spend(5_000)
    assert math.isclose(rate.wait_s(1.0, share=1.0), 4.1, rel_tol=0.1)


def test_no_limit_never_waits():
    rate = Rate(0)
    rate.spend(10_000)
    assert rate.wait_s(0.0, share=0.0) == 0.0


@pytest.mark.parametrize(("requests", "tokens", "are_set"), [(0, 0, False), (60, 0, True), (0, 60, True)])
def test_a_limit_of_zero_is_no_limit(requests: int, tokens: int, are_set: bool):
    rates = RateLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    assert rates.are_set is are_set
    assert (rates.wait_s(0.0, share=1.0) > 0) is are_set


def test_an_attempt_is_charged_the_average_of_the_answers_before_and_corrected_by_its_own():
    rates = RateLimits(requests_per_minute=0, tokens_per_minute=60_000)
    assert rates.spend() == 0.0
    rates.correct(100, charged_tokens=0.0)
    assert rates.spend() == 100.0
    rates.correct(200, charged_tokens=100.0)
    assert rates.spend() == pytest.approx(110.0)


def test_an_answer_that_used_more_than_was_charged_makes_the_next_attempt_wait_longer():
    waits = []
    for used in (1_000, 10_000):
        rates = RateLimits(requests_per_minute=0, tokens_per_minute=60_000)
        rates.wait_s(0.0, share=1.0)
        rates.correct(used, charged_tokens=rates.spend())
        waits.append(rates.wait_s(1.0, share=1.0))
    assert waits[1] > waits[0]


def test_the_tighter_limit_decides():
    rates = RateLimits(requests_per_minute=6, tokens_per_minute=6_000_000)
    rates.wait_s(0.0, share=1.0)
    assert rates.wait_s(1.0, share=1.0) > 5


def unlimited() -> RateLimits:
    return RateLimits(requests_per_minute=0, tokens_per_minute=0)


@pytest.mark.parametrize(("requests", "in_flight"), [(0, 0), (0, 5), (4, 5)])
def test_fewer_remaining_requests_than_are_in_flight_pause_until_the_reset(requests, in_flight):
    rates = unlimited()
    assert not rates.are_set
    rates.note_remaining(Remaining(requests, requests_reset_s=12.0), 100.0, in_flight=in_flight)
    assert rates.are_set
    assert rates.wait_s(100.0, share=1.0) == 12.0
    assert rates.wait_s(111.0, share=1.0) == 1.0
    assert rates.wait_s(112.0, share=1.0) == 0.0
    assert rates.wait_s(200.0, share=1.0) == 0.0


def test_enough_remaining_requests_and_tokens_are_no_pause():
    rates = unlimited()
    remaining = Remaining(5, 1, requests_reset_s=12.0, tokens_reset_s=12.0)
    rates.note_remaining(remaining, 100.0, in_flight=5)
    assert rates.wait_s(100.0, share=1.0) == 0.0


def test_fewer_remaining_tokens_than_a_line_uses_on_average_pause_until_the_reset():
    rates = unlimited()
    rates.correct(100, charged_tokens=0.0)
    rates.note_remaining(Remaining(tokens=100, tokens_reset_s=3.0), 0.0, in_flight=9)
    assert rates.wait_s(0.0, share=1.0) == 0.0
    rates.note_remaining(Remaining(tokens=99, tokens_reset_s=3.0), 0.0, in_flight=9)
    assert rates.wait_s(0.0, share=1.0) == 3.0


def test_without_a_reset_there_is_no_pause():
    rates = unlimited()
    rates.note_remaining(Remaining(0, 0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == 0.0


def test_a_pause_is_bounded_and_not_shortened_by_another_answer():
    rates = unlimited()
    rates.note_remaining(Remaining(0, requests_reset_s=86_400.0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == RETRY_AFTER_CAP_S
    rates.note_remaining(Remaining(0, requests_reset_s=0.0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == RETRY_AFTER_CAP_S
    again = unlimited()
    again.note_remaining(Remaining(0, requests_reset_s=0.0), 0.0, in_flight=1)
    assert again.wait_s(0.0, share=1.0) == PAUSE_FLOOR_S


def test_a_pause_and_a_limit_of_the_settings_hold_both():
    rates = RateLimits(requests_per_minute=60, tokens_per_minute=0)
    rates.note_remaining(Remaining(0, requests_reset_s=0.2), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) > 0.9
    rates.note_remaining(Remaining(0, requests_reset_s=20.0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == 20.0
