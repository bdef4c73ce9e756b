"""What holds for every line of every batch, whatever the model server does: random scripts in virtual time.

`make simulate SIMULATIONS=5000` tries more scripts, other ones in each run.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.core.outcome import Outcome, Unreachable
from nightmill.telemetry import Event, UpstreamHeld, UpstreamResumed
from tests.simulation.scripts import BAD_LINES, OUTAGES, Bad, Hangs, give, is_bad, named
from tests.simulation.simulator import Call, Lines, Server, error, simulate

MAX_ATTEMPTS = 8

WELL_FROM_S = 1_800.0
"""From then on the server is well, except for the bad lines."""

DEADLINE_S = WELL_FROM_S + 1_200.0

MOST_CALLS = 4 * MAX_ATTEMPTS
"""Calls of a line outside outages. `MAX_ATTEMPTS` calls count in full. As many may count for nothing, each
followed by a cheap request that is answered. While most lines fail for the first time, a call counts for a
half or less.
"""

SIMULATIONS = int(os.environ.get("SIMULATIONS", "0"))

simulations = settings(
    max_examples=SIMULATIONS or 30,
    derandomize=not SIMULATIONS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Outage:
    """Requests of one model, or of all, get `kind` for a while."""

    kind: str
    since_s: float
    length_s: float
    model: str | None

    @property
    def until_s(self) -> float:
        return self.since_s + self.length_s

    def hits(self, call: Call) -> bool:
        return self.since_s <= call.at < self.until_s and self.model in (None, call.model)


@dataclass(frozen=True)
class BatchPlan:
    """A batch: its good and bad lines, in an order that mixes them."""

    good: int
    bad: int
    models: Sequence[str]
    at_s: float

    def lines(self, number: int) -> Lines:
        contents = [*named(f"bad {number}", self.bad), *named(f"good {number}", self.good)]
        random.Random(number).shuffle(contents)
        models = [self.models[place % len(self.models)] for place in range(len(contents))]
        return Lines(contents, models=models, at=self.at_s, deadline_s=DEADLINE_S)


@dataclass(frozen=True)
class Plan:
    """A whole simulation."""

    outages: Sequence[Outage]
    batches: Sequence[BatchPlan]
    bad: str
    server_slots: int
    latency_s: float
    refusal: tuple[int, float | None] | None = None
    slots: int = 64
    seed: int = 1


@dataclass
class Played:
    """A model server that follows a plan."""

    plan: Plan
    computing: int = field(default=0)

    async def __call__(self, server: Server, call: Call) -> Outcome:
        for outage in self.plan.outages:
            if outage.hits(call):
                return await give(OUTAGES[outage.kind])
        if is_bad(call):
            return await give(BAD_LINES[self.plan.bad])
        refusal = self.plan.refusal
        if refusal is not None and self.computing >= self.plan.server_slots:
            status, retry_after_s = refusal
            return await give(error(status, retry_after_s=retry_after_s))
        self.computing += 1
        try:
            return await server.compute()
        finally:
            self.computing -= 1


MODELS = ("m0", "m1", "m2")


@st.composite
def outages(draw: st.DrawFn) -> Outage:
    kind = draw(st.sampled_from(sorted(OUTAGES)))
    since_s = draw(st.floats(0.0, WELL_FROM_S - 1.0))
    length_s = draw(st.floats(0.5, WELL_FROM_S - since_s))
    # Without a connection no model is reached.
    is_unreachable = isinstance(OUTAGES[kind], Unreachable)
    model = None if is_unreachable else draw(st.sampled_from((None, *MODELS)))
    return Outage(kind, since_s, length_s, model)


batch_plans = st.builds(
    BatchPlan,
    good=st.integers(1, 60),
    bad=st.integers(0, 20),
    models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=3),
    at_s=st.floats(0.0, 600.0),
)

plans = st.builds(
    Plan,
    outages=st.lists(outages(), max_size=4),
    batches=st.lists(batch_plans, min_size=1, max_size=4),
    bad=st.sampled_from(sorted(BAD_LINES)),
    server_slots=st.integers(1, 64),
    latency_s=st.floats(0.05, 1.0),
    refusal=st.none() | st.tuples(st.sampled_from((429, 503)), st.sampled_from((None, 0.0, 2.0))),
    slots=st.integers(1, 64),
    seed=st.integers(0, 1 << 16),
)


def assert_each_hold_ends_once(events: Sequence[Event]) -> None:
    """A hold is announced again only when an operator has to act, or has acted."""
    needs_operator: dict[str | None, bool] = {}
    for event in events:
        match event:
            case UpstreamHeld():
                assert needs_operator.get(event.model) is not event.needs_operator
                needs_operator[event.model] = event.needs_operator
            case UpstreamResumed():
                del needs_operator[event.model]
            case _:
                raise AssertionError(event)
    assert not needs_operator


@simulations
@given(plan=plans)
def test_good_lines_are_answered_and_bad_lines_settle_with_their_error(plan: Plan):
    server = Server(Played(plan), slots=plan.server_slots, latency_s=plan.latency_s)
    batches = [batch.lines(number) for number, batch in enumerate(plan.batches)]
    result = simulate(server, batches, slots=plan.slots, timeout_s=10.0, seed=plan.seed)
    for batch in batches:
        for content in batch.contents:
            assert batch.is_error(content) is content.startswith("bad"), content
    for content in server.calls_of:
        outside = [
            call
            for call in server.calls
            if call.content == content and not any(outage.hits(call) for outage in plan.outages)
        ]
        assert len(outside) <= MOST_CALLS or not content.startswith(("bad", "good")), content
    assert result.ended_at < DEADLINE_S
    assert_each_hold_ends_once(result.events)


@simulations
@given(
    kind=st.sampled_from(sorted(OUTAGES)),
    length_s=st.floats(5.0, 1_500.0),
    lines=st.integers(1, 400),
    slots=st.integers(1, 64),
    seed=st.integers(0, 1 << 16),
)
def test_the_calls_of_an_outage_are_bounded_by_its_length(
    kind: str, length_s: float, lines: int, slots: int, seed: int
):
    outage = Outage(kind, 0.0, length_s, None)
    plan = Plan([outage], [BatchPlan(lines, 0, ["m0"], 0.0)], "500", 64, 0.1)
    server = Server(Played(plan))
    batch = plan.batches[0].lines(0)
    simulate(server, [batch], slots=slots, timeout_s=10.0, seed=seed)
    assert batch.answered == lines
    calls = sum(call.at < length_s for call in server.calls)
    # Two times what was in flight, then probes: some at once, then one in 2 s or less often.
    assert calls <= 2 * slots + 20 + length_s / 2


@simulations
@given(
    kind=st.sampled_from(sorted(set(OUTAGES) - {"connection refused", "time-out"})),
    retry_after_s=st.sampled_from((None, 60.0)),
    share=st.integers(1, 10),
    at_s=st.floats(0.0, 30.0),
    slots=st.integers(2, 64),
    seed=st.integers(0, 1 << 16),
)
def test_no_line_waits_for_another_model(
    kind: str, retry_after_s: float | None, share: int, at_s: float, slots: int, seed: int
):
    bad: Bad = OUTAGES[kind]
    assert not isinstance(bad, Hangs)
    if retry_after_s is not None:
        bad = error(429, retry_after_s=retry_after_s)

    async def script(server: Server, call: Call) -> Outcome:
        return await give(bad) if call.model == "down" else await server.compute()

    down = Lines(named("a", 200), model="down", deadline_s=300.0)
    well = Lines(named("b", 200), model="well", at=at_s, deadline_s=300.0)
    mixed = Lines(named("c", 200), models=["well", *["down"] * share] * 200, at=at_s, deadline_s=300.0)
    simulate(Server(script), [down, well, mixed], slots=slots, seed=seed)
    needed_s = 0.1 * (200 + 200) / slots
    assert well.answered == 200
    assert mixed.answered == sum(place % (share + 1) == 0 for place in range(200))
    assert max(well.answered_at()[-1], mixed.answered_at()[-1]) <= at_s + 1.5 * needed_s + 2.0


@simulations
@given(
    server_slots=st.integers(1, 16),
    latency_s=st.floats(0.5, 4.0),
    slots=st.integers(1, 64),
    lines=st.integers(1, 100),
    seed=st.integers(0, 1 << 16),
)
def test_time_outs_of_a_queue_cost_no_line_its_answer(
    server_slots: int, latency_s: float, slots: int, lines: int, seed: int
):
    plan = Plan([], [BatchPlan(lines, 0, ["m0"], 0.0)], "500", server_slots, latency_s)
    server = Server(Played(plan), slots=server_slots, latency_s=latency_s)
    batch = plan.batches[0].lines(0)
    simulate(server, [batch], slots=slots, timeout_s=10.0, seed=seed)
    assert batch.answered == lines
