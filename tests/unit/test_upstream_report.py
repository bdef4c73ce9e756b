"""Reports of upstreams, and the report of a fleet."""

import math
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.upstream_report import BatchLines, ModelHold, ModelReport, UpstreamReport, merged

GAUGES = EngineGauges(engine="vllm", running=64, waiting=3, kv_use=0.8, hit_share=None, preemptions=None)
WRONG_KEY = ModelHold(reason="401", since=50, needs_operator=True)
FULL = UpstreamReport(
    upstream="gpu",
    at=100,
    models=("b", "a"),
    models_read_at=90,
    in_flight=5,
    waiting=7,
    per_model=(
        ModelReport("a", limit=64, rule="grow", advice="raise --max-num-seqs", in_flight=4, answered_per_s=2),
        ModelReport(None, in_flight=1, held=WRONG_KEY),
    ),
    gauges=GAUGES,
)


def test_a_report_survives_json():
    assert msgspec.json.decode(msgspec.json.encode(FULL), type=UpstreamReport) == FULL


def test_one_report_stays_as_it_is_but_for_the_order():
    alone = merged([FULL])
    assert alone.models == ("a", "b")
    assert [entry.model for entry in alone.per_model] == [None, "a"]
    assert set(alone.per_model) == set(FULL.per_model)
    assert msgspec.structs.replace(alone, models=FULL.models, per_model=FULL.per_model) == FULL


def test_counts_and_rates_of_workers_add_up():
    other = UpstreamReport(
        upstream="gpu",
        at=99,
        in_flight=10,
        waiting=1,
        per_model=(ModelReport("a", in_flight=6, answered_per_s=0.5, tokens_per_s=30),),
    )
    fleet = merged([other, FULL])
    assert (fleet.in_flight, fleet.waiting, fleet.at) == (15, 8, 100)
    [model] = [entry for entry in fleet.per_model if entry.model == "a"]
    assert (model.in_flight, model.answered_per_s, model.tokens_per_s) == (10, 2.5, 30)


def test_the_newest_limit_stands_with_its_rule_and_advice():
    def report(at: float, entry: ModelReport) -> UpstreamReport:
        return UpstreamReport(upstream="gpu", at=at, per_model=(entry,))

    old = report(1, ModelReport("a", limit=8, rule="cut: refused", advice="old"))
    new = report(2, ModelReport("a", limit=9, rule="grow"))
    newest = report(3, ModelReport("a"))
    [model] = merged([old, newest, new]).per_model
    assert (model.limit, model.rule, model.advice) == (9, "grow", None)
    [model] = merged([newest]).per_model
    assert (model.limit, model.rule, model.advice) == (None, None, None)


def test_the_models_are_those_of_all_lists_that_were_read():
    unread = UpstreamReport(upstream="gpu", at=3)
    one = UpstreamReport(upstream="gpu", at=2, models=("b",), models_read_at=1)
    two = UpstreamReport(upstream="gpu", at=1, models=("c", "a"), models_read_at=0)
    fleet = merged([unread, one, two])
    assert (fleet.models, fleet.models_read_at) == (("a", "b", "c"), 1)
    assert (merged([unread]).models, merged([unread]).models_read_at) == (None, None)
    assert merged([unread, UpstreamReport(upstream="gpu", at=1, models=())]).models == ()


def test_the_newest_gauges_stand():
    newer = msgspec.structs.replace(GAUGES, running=1)
    reports = [
        UpstreamReport(upstream="gpu", at=1, gauges=GAUGES),
        UpstreamReport(upstream="gpu", at=2, gauges=newer),
        UpstreamReport(upstream="gpu", at=3),
    ]
    assert merged(reports).gauges == newer


@pytest.mark.parametrize(
    ("holds", "standing"),
    [
        ([None, None], None),
        ([None, ModelHold("503", 70)], ModelHold("503", 70)),
        ([ModelHold("503", 70), ModelHold("502", 60, until=80)], ModelHold("502", 60, until=80)),
        ([ModelHold("503", 10), WRONG_KEY], WRONG_KEY),
    ],
)
def test_a_model_is_held_if_one_worker_holds_it(holds: list[ModelHold | None], standing: ModelHold | None):
    reports = [
        UpstreamReport(upstream="gpu", at=at, per_model=(ModelReport("a", held=hold),))
        for at, hold in enumerate(holds)
    ]
    [model] = merged(reports).per_model
    assert model.held == standing


@dataclass(frozen=True)
class Worker:
    """What a worker adds to the sums."""

    in_flight: int
    tokens_per_s: float
    model: str | None
    models: tuple[str, ...] | None


WORKERS = st.lists(
    st.builds(
        Worker,
        st.integers(0, 100),
        st.floats(0, 1e6),
        st.none() | st.sampled_from("ab"),
        st.none() | st.lists(st.sampled_from("abc")).map(tuple),
    ),
    min_size=1,
    max_size=6,
)


@given(WORKERS, st.randoms())
def test_the_report_of_a_fleet_is_the_sum_in_any_order(workers: list[Worker], random):
    reports = [
        UpstreamReport(
            upstream="gpu",
            at=at,
            models=worker.models,
            in_flight=worker.in_flight,
            per_model=(
                ModelReport(worker.model, in_flight=worker.in_flight, tokens_per_s=worker.tokens_per_s),
            ),
        )
        for at, worker in enumerate(workers)
    ]
    fleet = merged(reports)
    assert fleet.in_flight == sum(entry.in_flight for entry in fleet.per_model)
    assert fleet.in_flight == sum(worker.in_flight for worker in workers)
    for entry in fleet.per_model:
        rates = [worker.tokens_per_s for worker in workers if worker.model == entry.model]
        assert entry.tokens_per_s == math.fsum(rates)
    assert set(fleet.models or ()) == {model for worker in workers for model in worker.models or ()}
    random.shuffle(reports)
    assert merged(reports) == fleet


def test_the_lines_of_a_batch_add_up_and_the_first_to_be_sent_again_counts():
    def report(at: float, *batches: BatchLines) -> UpstreamReport:
        return UpstreamReport(upstream="gpu", at=at, batches=batches)

    fleet = merged(
        [
            report(2, BatchLines("x", 3, 1, 50.0, "429"), BatchLines("y", 1)),
            report(1, BatchLines("x", 4, 2, 40.0, "500")),
        ]
    )
    assert fleet.batches == (BatchLines("x", 7, 3, 40.0, "500"), BatchLines("y", 1))


def test_a_full_disk_of_one_worker_is_reported_and_a_rate_limit_of_the_newest_report():
    full = UpstreamReport(upstream="gpu", at=1, stalled="no space", rate_limit="requests_per_minute")
    assert merged([full, UpstreamReport(upstream="gpu", at=2)]).stalled == "no space"
    assert merged([full, UpstreamReport(upstream="gpu", at=2)]).rate_limit is None
    assert merged([full, UpstreamReport(upstream="gpu", at=0)]).rate_limit == "requests_per_minute"
