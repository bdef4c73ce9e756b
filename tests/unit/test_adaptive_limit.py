"""The rules of the adaptive concurrency limit, one after the other."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.adaptive_limit import Bounds, LimitState, Observed, advance
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.limit_rules import LimitRule
from tests.slow import examples

BOUNDS = Bounds(start=16, most=1024)


class Upstream:
    """Reports of one worker that keeps the limit full, once a second, until the limit is as wanted."""

    def __init__(self, bounds: Bounds = BOUNDS, state: LimitState | None = None) -> None:
        self.bounds, self.now = bounds, state.at if state else 1000.0
        self.state: LimitState = state or advance(None, Observed(), in_flight=0, bounds=bounds, now=self.now)

    def report(self, *, in_flight: int | None = None, after_s: float = 1.0, **seen: object) -> LimitState:
        self.now += after_s
        observed = Observed(**({"over_s": after_s, "lacking": True} | seen))  # type: ignore[arg-type]
        in_flight = self.state.limit if in_flight is None else in_flight
        self.state = advance(self.state, observed, in_flight=in_flight, bounds=self.bounds, now=self.now)
        return self.state

    def window(self, goodput: float, **seen: object) -> LimitState:
        """A full window at this goodput in answers a second, after what has to be acknowledged."""
        waiting = int(self.state.window.unacknowledged)
        if waiting:
            self.report(answered=waiting, busy_s=float(waiting), **seen)
        count = max(self.state.limit, 4)
        return self.report(answered=count, busy_s=self.state.limit * count / goodput, **seen)

    def windows(self, count: int, goodput: float, **seen: object) -> LimitState:
        for _ in range(count):
            self.window(goodput, **seen)
        return self.state

    def until(self, rule: str, goodput: float, **seen: object) -> LimitState:
        for _ in range(60):
            if self.window(goodput, **seen).rule == rule:
                return self.state
        raise AssertionError(f"{rule} was never decided: {self.state}")


def gauges(
    running: int,
    waiting: int,
    *,
    kv_use: float | None = None,
    hit_share: float | None = None,
    preemptions: int | None = None,
    engine: str = "vllm",
) -> EngineGauges:
    return EngineGauges(engine, running, waiting, kv_use, hit_share, preemptions)


def doubled(base: float = 16.0) -> Upstream:
    """An upstream whose limit was just doubled from 16 to 32, with a goodput of 16 before."""
    upstream = Upstream()
    upstream.window(base)
    assert (upstream.state.limit, upstream.state.base, upstream.state.rule) == (32, 16, LimitRule.GROW)
    return upstream


def test_a_new_limit_starts_as_the_bounds_say():
    assert Upstream().state.limit == 16
    assert Upstream().state.rule == "start"
    assert Upstream(Bounds(start=16, most=4)).state.limit == 4


def test_the_limit_doubles_only_after_a_full_window_of_answers():
    upstream = Upstream()
    assert upstream.report(answered=15, busy_s=15.0).limit == 16
    assert upstream.report(answered=1, busy_s=1.0).limit == 32
    assert upstream.state.rule == "grow"


def test_a_window_lasts_at_least_a_twentieth_of_a_second():
    upstream = Upstream()
    assert upstream.report(answered=100, busy_s=0.1, after_s=0.01).limit == 16
    assert upstream.report(answered=400, busy_s=0.7, after_s=0.04).limit == 32


def test_answers_to_attempts_of_the_old_limit_are_no_evidence():
    upstream = doubled()
    assert upstream.report(answered=8, busy_s=8.0).rule == "hold: acknowledgement"
    assert upstream.state.window.answered == 0
    upstream.report(answered=16, busy_s=16.0)
    assert upstream.state.window.answered == 8
    assert upstream.state.window.unacknowledged == 0
    assert upstream.state.window.begun_at == pytest.approx(upstream.now - 0.5)


def test_the_part_of_a_report_from_before_the_change_is_no_evidence():
    upstream = Upstream()
    upstream.report(answered=8, busy_s=8.0, over_s=4.0, after_s=1.0)  # only a quarter is of this window
    assert upstream.state.window.answered == 2


def test_growth_goes_on_while_goodput_grows_with_the_limit():
    upstream = doubled()
    assert upstream.window(32.0).limit == 64
    assert upstream.window(60.0).limit == 128


def test_a_plateau_is_believed_after_several_windows_and_the_lower_limit_comes_back():
    upstream = doubled()
    assert upstream.window(16.5).limit == 32
    assert upstream.until("revert", 16.5).limit == 16
    assert upstream.until("hold: plateau", 16.5).limit == 16


def test_a_small_gain_is_kept_when_it_is_sure():
    upstream = doubled()
    assert upstream.window(20.0).limit == 32
    upstream.until("grow", 20.0)
    assert (upstream.state.limit, upstream.state.base) == (64, 32)


def test_much_less_goodput_ends_a_try_before_it_is_sure():
    upstream = doubled()
    upstream.window(8.0)
    assert upstream.window(8.0).limit == 16


def test_between_a_limit_and_one_that_was_worse_half_the_way_is_tried_and_then_nothing_for_long():
    upstream = doubled()
    while upstream.state.limit == 32:
        upstream.window(12.0)
    assert upstream.state.worse_at == 32
    upstream.state = msgspec.structs.replace(upstream.state, shrink_in=64)
    upstream.until("probe", 16.0)
    assert upstream.state.limit == 24
    assert upstream.window(24.0).limit == 28
    assert upstream.window(28.0).limit == 28
    assert (upstream.state.base, upstream.state.worse_at, upstream.state.grow_in) == (0, 0, 16)


def settled(goodput: float = 16.0) -> Upstream:
    """An upstream that has learned that 32 is no better than 16."""
    upstream = doubled()
    upstream.until("revert", goodput)
    return upstream


def test_tries_of_a_higher_limit_become_rarer_while_they_fail():
    upstream = settled()
    pauses = []
    for _ in range(4):
        pauses.append(upstream.state.grow_in)
        upstream.state = msgspec.structs.replace(upstream.state, shrink_in=99)
        upstream.until("probe", 16.0)
        upstream.until("revert", 16.0)
    assert pauses == [4, 8, 16, 16]


def test_a_lower_limit_with_the_same_goodput_stays():
    upstream = settled()
    upstream.until("probe: lower", 16.0)
    assert upstream.state.limit == 12
    upstream.until("confirm", 16.0)
    assert (upstream.state.limit, upstream.state.base) == (12, 0)


def test_a_lower_limit_with_less_goodput_does_not_stay():
    upstream = settled()
    upstream.until("probe: lower", 16.0)
    upstream.until("revert", 12.0)
    assert upstream.state.limit == 16
    assert upstream.state.shrink_in == 8


def test_a_lower_limit_is_tried_for_several_windows_when_the_difference_is_small():
    upstream = settled()
    upstream.until("probe: lower", 16.0)
    upstream.state = msgspec.structs.replace(upstream.state, noise=0.004)
    assert upstream.window(15.0).limit == 12
    assert upstream.until("revert", 15.0).limit == 16


def test_a_faster_upstream_at_the_same_limit_makes_the_limit_grow_at_once():
    upstream = settled()
    upstream.state = msgspec.structs.replace(upstream.state, shrink_in=64, grow_in=16)
    upstream.windows(3, 16.0)
    upstream.window(24.0)
    assert (upstream.state.limit, upstream.state.shifts) == (16, 1)
    upstream.windows(2, 24.0)
    assert (upstream.state.limit, upstream.state.rule) == (32, "grow")


def test_a_slower_upstream_at_the_same_limit_makes_a_lower_limit_be_tried_at_once():
    upstream = settled()
    upstream.state = msgspec.structs.replace(upstream.state, shrink_in=64, grow_in=16)
    upstream.windows(3, 16.0)
    upstream.windows(3, 8.0)
    assert (upstream.state.limit, upstream.state.rule) == (12, "probe: lower")


def test_one_strange_window_changes_nothing():
    upstream = settled()
    upstream.state = msgspec.structs.replace(upstream.state, shrink_in=64, grow_in=64)
    upstream.windows(3, 16.0)
    for goodput in (24.0, 8.0, 16.0):
        upstream.window(goodput)
    assert (upstream.state.limit, upstream.state.shifts) == (16, 0)


def test_without_waiting_lines_nothing_is_learned():
    upstream = Upstream()
    assert upstream.window(16.0, lacking=False).rule == "hold: input bound"
    assert upstream.state.limit == 16


def test_with_few_attempts_in_flight_nothing_is_learned():
    upstream = Upstream()
    assert upstream.report(answered=16, busy_s=16.0, in_flight=4).rule == "hold: input bound"
    assert upstream.report(answered=400, busy_s=4.0).rule == "hold: input bound"


def test_answers_without_known_durations_are_measured_by_the_clock():
    upstream = Upstream()
    assert upstream.report(answered=16).limit == 32


def test_many_answers_are_measured_by_the_clock():
    upstream = Upstream()
    upstream.report(answered=16_000, busy_s=16.0)
    assert upstream.state.base_goodput == 16_000


def test_goodput_is_in_tokens_where_tokens_are_known():
    upstream = doubled()
    assert upstream.window(16.0, tokens=3_200).by_tokens
    assert upstream.state.base in {0, 32}  # what was measured in answers is forgotten


def test_the_limit_does_not_grow_beyond_the_bounds():
    upstream = Upstream(Bounds(start=16, most=24))
    assert upstream.window(16.0).limit == 24
    upstream.until("ceiling reached", 24.0)
    assert upstream.state.limit == 24


def test_a_lower_bound_is_in_effect_at_once():
    upstream = doubled()
    upstream.bounds = Bounds(start=4, most=8)
    assert upstream.report().limit == 8


def test_refused_attempts_take_their_slots_with_them():
    upstream = Upstream()
    state = upstream.report(refused=12, in_flight=4)
    assert (state.limit, state.rule) == (4, "cut: refused")


def test_a_few_refusals_among_many_answers_are_chance():
    upstream = Upstream()
    assert upstream.report(answered=15, busy_s=15.0, after_s=0.1).limit == 16
    upstream.state = msgspec.structs.replace(
        upstream.state,
        window=msgspec.structs.replace(upstream.state.window, answered=100.0, begun_at=upstream.now),
    )
    assert upstream.report(refused=1, after_s=0.01).limit == 16


def test_when_everything_is_refused_the_limit_is_halved_and_grows_soon():
    upstream = Upstream()
    assert upstream.report(refused=16, in_flight=0).limit == 8
    assert upstream.state.stride == 1.0


def test_after_a_refusal_the_limit_grows_carefully():
    upstream = Upstream(state=msgspec.structs.replace(Upstream().state, limit=256))
    assert upstream.report(refused=56, in_flight=200).limit == 200
    assert upstream.windows(5, 200.0).limit == 212
    assert upstream.state.rule == "probe"
    assert upstream.window(212.0).limit == 238  # no refusal: the next step is twice as long


def test_a_limit_is_never_below_one():
    upstream = Upstream(Bounds(start=1))
    for _ in range(3):
        assert upstream.report(refused=5, in_flight=1).limit == 1
        assert upstream.report(timed_out=5, in_flight=1).limit == 1


def test_timeouts_halve_the_limit():
    state = Upstream().report(timed_out=1)
    assert (state.limit, state.rule) == (8, "cut: timed out")


def test_one_timeout_among_many_answers_does_not():
    upstream = Upstream()
    assert upstream.report(timed_out=1, answered=21, busy_s=21.0, after_s=0.04).limit == 16


def test_a_limit_is_halved_when_nothing_is_answered_for_long():
    upstream = Upstream()
    upstream.report(answered=2, busy_s=10.0)
    for _ in range(20):
        assert upstream.report().limit == 16
    state = upstream.report()
    assert (state.limit, state.rule) == (8, "cut: stalled")
    assert upstream.report().limit == 8  # the next cut takes as long again


def test_after_a_halving_a_higher_limit_is_tried_before_a_lower_one():
    upstream = Upstream()
    assert upstream.report(timed_out=1).limit == 8
    limits = [upstream.window(8.0).limit for _ in range(6)]
    assert limits == [8, 8, 8, 8, 10, 10]


def test_an_hour_without_reports_starts_anew_at_half():
    upstream = doubled()
    state = upstream.report(after_s=3_601.0, over_s=0.0)
    assert (state.limit, state.rule) == (16, "start")


def test_a_gap_without_work_is_no_evidence():
    upstream = Upstream()
    upstream.report(answered=8, busy_s=8.0)
    assert upstream.report(after_s=100.0, over_s=1.0, answered=2, busy_s=2.0).window.answered == 2


def test_a_gap_without_work_is_no_stall():
    upstream = Upstream()
    upstream.report(answered=8, busy_s=8.0)
    assert upstream.report(after_s=1_000.0, over_s=0.0).limit == 16


def test_reports_a_little_out_of_order_count_and_a_clock_that_is_set_back_begins_a_new_window():
    upstream = Upstream()
    upstream.report(answered=8, busy_s=8.0)
    assert upstream.report(after_s=-0.5, over_s=0.5, answered=2, busy_s=2.0).window.answered == 10
    state = upstream.report(after_s=-500.0, over_s=1.0, answered=2, busy_s=2.0)
    assert (state.limit, state.window.answered, state.at) == (16, 0, upstream.now)
    assert upstream.report(answered=16, busy_s=16.0).limit == 32


def test_a_report_of_nothing_changes_nothing():
    upstream = doubled()
    before = upstream.state
    assert upstream.report(in_flight=0) == before


def test_a_queue_in_the_engine_lowers_the_limit_to_what_it_runs_and_names_the_flag():
    upstream = doubled()
    state = upstream.window(20.0, gauges=gauges(20, 12))
    assert (state.limit, state.rule) == (24, "step down: engine queue")
    assert state.advice == "the engine runs 20 requests at once: raise --max-num-seqs"
    upstream.until("hold: engine queue", 20.0, gauges=gauges(20, 3))
    assert upstream.state.limit == 24


def test_a_small_engine_gets_a_queue_for_all_that_it_runs_because_requests_may_end_together():
    upstream = doubled()
    state = upstream.window(4.0, gauges=gauges(4, 28))
    assert (state.limit, state.rule) == (8, "step down: engine queue")


def test_the_limit_grows_at_once_when_the_queue_is_gone():
    upstream = doubled()
    upstream.window(20.0, gauges=gauges(20, 12))
    upstream.until("hold: engine queue", 20.0, gauges=gauges(20, 3))
    state = upstream.window(24.0, gauges=gauges(24, 0))
    assert (state.limit, state.rule) == (30, "probe")


def test_advice_stands_while_the_queue_comes_and_goes_and_until_a_higher_limit_brings_more():
    upstream = doubled()
    advice = upstream.window(20.0, gauges=gauges(20, 12)).advice
    upstream.until("hold: engine queue", 20.0, gauges=gauges(20, 3))
    assert upstream.window(20.0, gauges=gauges(23, 0)).advice == advice
    assert upstream.window(20.0, gauges=gauges(20, 8)).advice == advice
    upstream.until("probe", 23.0, gauges=gauges(23, 0))
    tried = upstream.state.limit
    while upstream.state.limit == tried:
        upstream.window(30.0, gauges=gauges(28, 0))
    assert upstream.state.limit > tried
    assert upstream.state.advice is None


def test_the_limit_makes_room_for_requests_of_other_clients_that_wait():
    upstream = doubled()
    state = upstream.window(32.0, gauges=gauges(40, 10))
    assert (state.limit, state.rule) == (22, "yield: online traffic")


def test_a_full_cache_whose_hits_are_lost_lowers_the_limit():
    upstream = doubled()
    upstream.window(32.0, gauges=gauges(32, 0, kv_use=0.5, hit_share=0.8))
    state = upstream.window(64.0, gauges=gauges(64, 0, kv_use=0.97, hit_share=0.3))
    assert (state.limit, state.rule) == (51, "cut: KV pressure")
    assert state.advice == "the KV cache is full at 64 running requests: give the engine more memory for it"


def test_a_full_cache_with_good_hits_is_the_cache_at_work():
    upstream = doubled()
    upstream.window(32.0, gauges=gauges(32, 0, kv_use=0.5, hit_share=0.8))
    assert upstream.window(64.0, gauges=gauges(64, 0, kv_use=0.97, hit_share=0.8)).limit == 128


def test_many_preemptions_lower_the_limit():
    upstream = doubled()
    upstream.window(32.0, gauges=gauges(32, 0, preemptions=5))
    state = upstream.window(64.0, gauges=gauges(50, 14, preemptions=90))
    assert (state.limit, state.rule) == (51, "cut: KV pressure")


def test_each_rule_has_a_sentence():
    assert all(rule.sentence.endswith(".") for rule in LimitRule)


@pytest.mark.parametrize(
    ("engine", "flag"), [("vllm", "--max-num-seqs"), ("llama.cpp", "--parallel (-np)"), ("tgi", "--max-conc")]
)
def test_an_engine_with_an_empty_queue_that_runs_fewer_than_are_sent_is_the_ceiling(engine, flag):
    upstream = Upstream(state=None)
    state = upstream.windows(6, 16.0, gauges=gauges(8, 0, engine=engine))
    assert state.advice is not None
    assert state.advice.startswith(f"the engine's queue stays empty at 8 running requests: raise {flag}")


@pytest.mark.parametrize("running", [(8, 9), (16, 16)], ids=["changing", "all that are sent"])
def test_without_a_constant_ceiling_below_what_is_sent_there_is_no_advice(running):
    upstream = Upstream(bounds=Bounds(start=16, most=16))
    for count in running * 8:
        upstream.report(answered=4, busy_s=4.0, gauges=gauges(count, 0))
    assert upstream.state.advice is None


READINGS = st.none() | st.builds(
    EngineGauges,
    st.sampled_from(["vllm", "other"]),
    st.integers(0, 500),
    st.integers(0, 500),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 10_000),
)
REPORTS = st.builds(
    Observed,
    answered=st.integers(0, 5_000),
    tokens=st.sampled_from([0, 0, 100, 50_000]),
    busy_s=st.floats(0, 1e4),
    refused=st.sampled_from([0, 0, 0, 1, 20, 3_000]),
    timed_out=st.sampled_from([0, 0, 0, 0, 1, 20]),
    lacking=st.booleans(),
    over_s=st.floats(0, 5),
    gauges=READINGS,
)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(
        st.tuples(REPORTS, st.integers(0, 1_500), st.sampled_from([0.0, 0.01, 0.5, 30.0, 4_000.0])),
        max_size=40,
    ),
    st.builds(Bounds, start=st.integers(1, 64), most=st.integers(1, 1024)),
)
def test_any_reports_leave_a_limit_within_its_bounds_that_survives_json(reports, bounds):
    states: list[LimitState | None] = [None, None]
    now = 100.0
    for observed, in_flight, after_s in reports:
        now += after_s
        for copy in (0, 1):
            states[copy] = advance(states[copy], observed, in_flight=in_flight, bounds=bounds, now=now)
        state = states[0]
        assert state is not None
        assert 1 <= state.limit <= bounds.most
        text = msgspec.json.encode(state)
        assert len(text) < 1024
        states[1] = msgspec.json.decode(text, type=LimitState)
        assert states[1] == state
        LimitRule(state.rule)
