"""A sample of an upstream, the rates between samples, and the changes of its limit."""

from nightmill.core.counts import UpstreamCounts
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.limit_rules import LimitRule
from nightmill.core.upstream_report import ModelReport, UpstreamReport
from nightmill.core.upstream_sample import LimitChange, UpstreamSample, limit_changes, rates, sampled, thinned


def counted() -> UpstreamCounts:
    return UpstreamCounts(attempts={"answered": 90, "load": 7, "late": 2, "fault": 1}, output_tokens=500)


def test_a_sample_keeps_refusals_apart_from_other_failures():
    report = UpstreamReport(
        "gpu",
        50.0,
        in_flight=12,
        waiting=3,
        per_model=(ModelReport("m", limit=16, rule="grow", in_flight=12),),
        gauges=EngineGauges("vllm", 12, 4, 0.5, None, None),
    )
    assert sampled(report, counted(), at=55) == UpstreamSample(
        at=55,
        concurrency_limit=16,
        rule="grow",
        in_flight=12,
        waiting=3,
        answered=90,
        refused=7,
        failed=3,
        output_tokens=500,
        engine_running=12,
        engine_waiting=4,
        kv_use=0.5,
    )


def test_limits_of_several_models_are_added_and_no_rule_stands_for_all():
    models = (ModelReport("a", limit=16, rule="grow"), ModelReport("b", limit=8, rule="start"))
    found = sampled(UpstreamReport("gpu", 50.0, per_model=models), UpstreamCounts(), at=55)
    assert (found.concurrency_limit, found.rule) == (24, None)


def test_a_limit_that_is_not_known_stays_unknown():
    report = UpstreamReport("gpu", 50.0, per_model=(ModelReport(None),))
    assert sampled(report, UpstreamCounts(), at=55).concurrency_limit is None


def test_rates_stay_exact_where_samples_are_left_out():
    samples = [UpstreamSample(at=at, answered=answered) for at, answered in ((0, 0), (5, 10), (65, 130))]
    assert rates(samples, "answered") == [None, 2.0, 2.0]
    assert rates([samples[0], samples[2]], "answered") == [None, 2.0]
    assert rates([], "answered") == []


def test_counts_that_begin_anew_give_no_rate():
    samples = [UpstreamSample(at=0, answered=50), UpstreamSample(at=5, answered=1)]
    assert rates(samples, "answered") == [None, None]


def test_changes_of_the_limit_are_named_with_the_limit_before_the_newest_first():
    samples = [
        UpstreamSample(at=at, concurrency_limit=limit, rule=rule)
        for at, limit, rule in (
            (0, None, None),
            (5, 16, "start"),
            (10, 16, "hold: plateau"),
            (15, 32, "grow"),
            (20, 24, "cut: refused"),
            (25, None, None),
        )
    ]
    changes = limit_changes(samples, most=10)
    assert changes == [
        LimitChange(20, 32, 24, "cut: refused"),
        LimitChange(15, 16, 32, "grow"),
        LimitChange(5, None, 16, "start"),
    ]
    assert len(limit_changes(samples, most=1)) == 1


def test_a_rule_that_was_applied_after_the_change_does_not_explain_it():
    samples = [
        UpstreamSample(at=at, concurrency_limit=limit, rule=rule)
        for at, limit, rule in ((0, 16, "grow"), (5, 32, "cut: refused"), (10, 24, "hold: plateau"))
    ]
    assert [change.rule for change in limit_changes(samples, most=10)] == [None, None]


def test_every_rule_that_moves_a_limit_explains_a_move_in_its_direction():
    moving = {rule for rule in LimitRule if not rule.startswith(("hold", "confirm", "ceiling"))}
    moving.add(LimitRule.SHARE)
    explained: set[str | None] = set()
    for rule in LimitRule:
        for after in (8, 32):
            pair = [
                UpstreamSample(at=0, concurrency_limit=16),
                UpstreamSample(at=5, concurrency_limit=after, rule=rule),
            ]
            explained |= {change.rule for change in limit_changes(pair, most=1)}
    assert explained - {None} == moving


def test_many_samples_are_thinned_to_the_same_ones_as_time_goes_on():
    samples = [UpstreamSample(at=at) for at in range(0, 21_600, 5)]
    few = thinned(samples, over_s=21_600, most=400)
    assert [one.at for one in few] == list(range(0, 21_600, 60))
    later = [*samples[120:], *(UpstreamSample(at=at) for at in range(21_600, 21_650, 5))]
    assert [one.at for one in thinned(later, over_s=21_600, most=400)] == list(range(600, 21_650, 60))
    week = [UpstreamSample(at=at) for at in range(0, 604_800, 300)]
    assert [one.at for one in thinned(week, over_s=604_800, most=400)] == list(range(0, 604_800, 900))


def test_few_samples_and_those_of_the_last_minutes_are_not_thinned():
    samples = [UpstreamSample(at=at) for at in range(0, 600, 5)]
    assert thinned(samples, over_s=21_600, most=400) == samples
    assert thinned(samples, over_s=600, most=1) == samples
