"""The stated range of a forecast holds about as often as it says, in runs by which it was not fitted."""

import statistics

from tests.simulation.forecast_runs import record, replay


def test_the_80_percent_range_holds_in_most_replayed_forecasts():
    replayed = [one for seed in range(9_000, 9_006) for one in replay(record(seed))]
    assert len(replayed) > 50
    assert 0.65 <= statistics.mean(one.is_in_range for one in replayed) <= 0.95


def test_a_recorded_run_is_the_same_each_time():
    assert record(9_001) == record(9_001)
