"""Rate limits of an upstream, each alone over many workers and both together."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.failure import PAUSE_FLOOR_S
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
    assert rates.wait_s(0.0, share=1.0) == 60.0
    rates.note_remaining(Remaining(0, requests_reset_s=0.0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == 60.0
    again = unlimited()
    again.note_remaining(Remaining(0, requests_reset_s=0.0), 0.0, in_flight=1)
    assert again.wait_s(0.0, share=1.0) == PAUSE_FLOOR_S


def test_a_pause_and_a_limit_of_the_settings_hold_both():
    rates = RateLimits(requests_per_minute=60, tokens_per_minute=0)
    rates.note_remaining(Remaining(0, requests_reset_s=0.2), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) > 0.9
    rates.note_remaining(Remaining(0, requests_reset_s=20.0), 0.0, in_flight=1)
    assert rates.wait_s(0.0, share=1.0) == 20.0


def waits(remaining: Remaining, *, in_flight: int = 0, tokens_per_line: int = 0) -> float:
    """The wait after an answer, before an attempt of a worker that is alone."""
    rates = unlimited()
    if tokens_per_line:
        rates.correct(tokens_per_line, charged_tokens=0.0)
    rates.note_remaining(remaining, 0.0, in_flight=in_flight)
    return rates.wait_s(0.0, share=1.0)


def test_with_the_limit_known_the_wait_is_until_one_more_request_fits():
    # 60 requests refill in 360 s: one in 6 s.
    assert waits(Remaining(0, requests_reset_s=360.0, requests_limit=60)) == pytest.approx(6.0)
    assert waits(Remaining(0, requests_reset_s=360.0, requests_limit=60), in_flight=9) < 61
    assert waits(Remaining(30, requests_reset_s=30.0, requests_limit=60), in_flight=9) == 0.0
    assert waits(Remaining(60, requests_reset_s=0.0, requests_limit=60)) == 0.0


def test_with_the_limit_known_the_wait_is_until_the_tokens_of_one_line_fit():
    remaining = Remaining(tokens=0, tokens_reset_s=60.0, tokens_limit=6_000)
    assert waits(remaining, tokens_per_line=500) == pytest.approx(5.0)
    assert waits(Remaining(tokens=5_000, tokens_reset_s=10.0, tokens_limit=6_000), tokens_per_line=500) == 0.0


def test_a_limit_that_refills_in_days_delays_an_attempt_by_ten_minutes_at_most():
    assert waits(Remaining(0, requests_reset_s=86_400.0, requests_limit=1)) == pytest.approx(600.0)


def test_no_more_attempts_start_than_remain_beyond_those_in_flight():
    rates = unlimited()
    rates.note_remaining(Remaining(10, requests_reset_s=50.0, requests_limit=60), 0.0, in_flight=4)
    started = 0
    while rates.wait_s(0.0, share=1.0) == 0:
        rates.spend()
        started += 1
    assert started == 6
    assert rates.wait_s(0.0, share=1.0) == pytest.approx(1.0)


@given(
    limit=st.integers(2, 100),
    refill_s=st.floats(1.0, 600.0),
    latency_s=st.floats(0.1, 120.0),
    slots=st.integers(1, 100),
    says_at_end=st.booleans(),
    workers=st.integers(1, 3),
)
@settings(max_examples=8, deadline=None)
def test_an_upstream_that_refills_is_used_fully_and_refuses_little(
    limit, refill_s, latency_s, slots, says_at_end, workers
):
    """`limit` requests refill in `refill_s`; the headers are of the beginning or of the end of an attempt."""
    per_s = limit / refill_s
    fleet = [unlimited() for _ in range(workers)]
    in_flight: list[list[tuple[float, Remaining | None]]] = [[] for _ in fleet]
    level, now, answered, refused = float(limit), 0.0, 0, 0
    end = 200 / per_s + 4 * latency_s
    step_s = min(0.25 / per_s, latency_s / 2)

    def remaining() -> Remaining:
        return Remaining(int(level), requests_reset_s=(limit - level) / per_s, requests_limit=limit)

    while now < end:
        level = min(limit, level + step_s * per_s)
        now += step_s
        for rates, flying in zip(fleet, in_flight, strict=True):
            while flying and flying[0][0] <= now:
                _, said = flying.pop(0)
                rates.note_remaining(said or remaining(), now, in_flight=len(flying))
            while len(flying) < max(1, slots // workers) and rates.wait_s(now, share=1 / workers) == 0:
                rates.spend()
                if level < 1:
                    refused += 1
                    rates.note_remaining(remaining(), now, in_flight=len(flying))
                    continue
                level -= 1
                answered += 1
                flying.append((now + latency_s, None if says_at_end else remaining()))
    by_slots = max(1, slots // workers) * workers * end / latency_s
    assert answered >= 0.75 * min(per_s * (end - latency_s), 0.7 * by_slots)
    assert refused <= 0.05 * answered + 2 * slots + 5


def test_the_limit_that_lets_no_attempt_start_is_named():
    def limited(requests: int, tokens: int) -> str | None:
        rates = RateLimits(requests_per_minute=requests, tokens_per_minute=tokens)
        rates.wait_s(0.0, share=1.0)
        rates.wait_s(60.0, share=1.0)
        assert rates.limited_by(60.0, share=1.0) is None
        rates.spend()
        rates.correct(500, charged_tokens=0.0)
        return rates.limited_by(60.0, share=1.0)

    assert limited(60, 0) == "requests_per_minute"
    assert limited(0, 600) == "tokens_per_minute"
    assert limited(0, 0) is None


def test_a_limit_that_only_the_answers_name_is_the_own_one_of_the_upstream():
    rates = RateLimits(requests_per_minute=0, tokens_per_minute=0)
    rates.note_remaining(Remaining(requests=0, requests_reset_s=30.0), 0.0, in_flight=1)
    assert rates.limited_by(1.0, share=1.0) == "its own rate limit"
