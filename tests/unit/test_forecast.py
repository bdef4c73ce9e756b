"""The forecast of a batch from samples of its progress, and prices."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.batch import Usage
from nightmill.core.forecast import Forecast, Outlook, Sample, active_samples, forecast
from nightmill.core.prices import Price, price_of

DAY = 86_400.0


def steady(
    per_s: float = 2.0, *, seconds: int = 100, begin: float = 1_000.0, in_flight: int = 4
) -> list[Sample]:
    return [
        Sample(begin + at, int(per_s * at), 10 * int(per_s * at), 5 * int(per_s * at), in_flight)
        for at in range(0, seconds + 1, 5)
    ]


def expected(samples, *, total=1_000, deadline=DAY, **around) -> Forecast:
    return forecast(Outlook(samples, total, deadline, **around))


def test_a_steady_rate_is_seen_and_the_end_is_in_the_range():
    found = expected(steady())
    assert found.lines_per_s == pytest.approx(2.0)
    assert found.ends_at == pytest.approx(1_100 + 400, rel=0.05)
    assert found.earliest_at < 1_100 + 400 < found.latest_at
    assert found.earliest_at < found.ends_at < found.latest_at
    assert found.deadline_odds == 1.0


def test_the_odds_fall_as_the_deadline_comes_nearer():
    odds = [expected(steady(), deadline=1_100 + left).deadline_odds for left in (800, 450, 400, 350, 100, 0)]
    assert odds == sorted(odds, reverse=True)
    assert odds[0] > 0.9
    assert odds[-1] == 0.0
    assert expected(steady(), deadline=500).deadline_odds == 0.0


def test_the_range_is_wider_beside_other_batches_and_with_a_rate_that_changes():
    def width(found: Forecast) -> float:
        return found.latest_at - found.earliest_at

    slower = [*steady(4.0, seconds=50), *(Sample(1_050 + at, 200 + at // 5, in_flight=4) for at in (25, 50))]
    assert width(expected(steady(), is_shared=True)) > width(expected(steady()))
    assert width(expected(slower)) > width(expected(steady(2.1)))


@pytest.mark.parametrize(
    "samples",
    [[], [Sample(0.0, 0)], steady(seconds=0), [Sample(0.0, 0), Sample(50.0, 0)], steady(seconds=5)[:1]],
)
def test_there_is_no_end_while_too_little_was_seen(samples):
    found = expected(samples)
    assert (found.ends_at, found.latest_at, found.deadline_odds) == (None, None, None)


def test_there_is_no_end_while_the_batch_is_paused_or_nothing_is_sent():
    assert expected(steady(), pauses=[(1_090.0, None)]).ends_at is None
    assert expected(steady(), goes_on_at=math.inf).ends_at is None


def test_a_hold_whose_end_is_known_moves_the_end():
    held = expected(steady(), goes_on_at=1_100.0 + 600)
    assert held.ends_at == pytest.approx(expected(steady()).ends_at + 600)


def test_a_pause_that_is_over_does_not_lower_the_rate():
    before, after = steady(seconds=50), steady(seconds=50, begin=5_050.0)
    samples = [*before, *(Sample(one.at, one.answered + 100, in_flight=4) for one in after)]
    found = expected(samples, pauses=[(1_050.0, 5_050.0)])
    assert found.lines_per_s == pytest.approx(2.0)
    assert found.ends_at == pytest.approx(5_100 + 400, rel=0.05)


def test_nothing_answered_for_long_is_a_rate_of_zero_without_an_end():
    last = steady()[-1]
    found = expected([*steady(), Sample(last.at + 120, last.answered, in_flight=4)])
    assert (found.lines_per_s, found.ends_at) == (0.0, None)


def test_tokens_and_cost_of_the_lines_that_are_left_are_those_of_the_lines_before():
    usage = Usage(input_tokens=2_000, output_tokens=1_000, total_tokens=3_000)
    found = expected(steady(), usage=usage, price=Price(input=1.0, output=2.0))
    assert found.tokens_to_come == 12_000
    assert found.cost == pytest.approx(0.004)
    assert found.cost_to_come == pytest.approx(0.016)
    assert found.output_tokens_per_s == pytest.approx(10.0)
    assert expected(steady(), usage=usage).cost is None


def test_cached_tokens_have_their_own_price_where_there_is_one():
    usage = Usage(input_tokens=1_000_000, cached_tokens=400_000, output_tokens=500_000)
    assert Price(input=1.0, output=4.0).cost(usage) == pytest.approx(3.0)
    assert Price(input=1.0, output=4.0, cached_input=0.5).cost(usage) == pytest.approx(2.8)


def test_a_model_without_a_price_has_that_of_the_star():
    plain, other = Price(input=1.0), Price(input=2.0)
    assert price_of({"m": plain}, "m") is plain
    assert price_of({"m": plain}, "n") is None
    assert price_of({"m": plain, "*": other}, "n") is other
    assert price_of({"m": plain, "*": other}, None) is other


def test_a_clock_that_stands_still_in_the_pauses():
    times = [0.0, 10.0, 15.0, 20.0, 40.0]
    samples = active_samples([Sample(at, 0) for at in times], [(10.0, 20.0), (30.0, None)])
    assert [one.at for one in samples] == [0.0, 10.0, 10.0, 10.0, 20.0]


@given(
    steps=st.lists(st.tuples(st.floats(0.1, 1_000.0), st.integers(0, 500)), max_size=30),
    total=st.integers(1, 20_000),
    in_flight=st.integers(0, 1_000),
    is_shared=st.booleans(),
)
def test_any_samples_have_an_ordered_range_after_now(steps, total, in_flight, is_shared):
    samples = [Sample(0.0, 0)]
    for step_s, answered in steps:
        last = samples[-1]
        samples.append(Sample(last.at + step_s, min(total, last.answered + answered), in_flight=in_flight))
    found = expected(samples, total=total, is_shared=is_shared)
    if found.ends_at is not None:
        assert samples[-1].at <= found.earliest_at <= found.ends_at <= found.latest_at
        assert 0.0 <= found.deadline_odds <= 1.0
