"""What holds for every line, whatever several model servers and their operator do: random scripts."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.outcome import Outcome
from nightmill.core.upstream_setting import UpstreamState
from tests.simulation.scripts import BAD_LINES, OUTAGES, Bad, give, is_bad, named
from tests.simulation.simulator import Call, Lines, Server, error, simulate
from tests.simulation.test_properties import simulations
from tests.simulation.upstreams import SimulatedUpstream

MODELS = ("a", "b", "c")
WELL_FROM_S = 300.0
DEADLINE_S = 3_000.0

_DOWN: dict[str, Bad] = {**OUTAGES, "429 with Retry-After": error(429, retry_after_s=20.0)}


@dataclass(frozen=True)
class Down:
    kind: str
    since_s: float
    length_s: float
    model: str | None

    def hits(self, call: Call) -> bool:
        return self.since_s <= call.at < self.since_s + self.length_s and self.model in (None, call.model)


@dataclass(frozen=True)
class UpstreamPlan:
    """An upstream: what it serves, how fast, when it fails, and when its setting changes."""

    models: frozenset[str]
    slots: int | None
    server_slots: int
    latency_s: float
    weight: float
    outages: Sequence[Down]
    changes: Sequence[tuple[float, str]]

    async def script(self, server: Server, call: Call) -> Outcome:
        for outage in self.outages:
            if outage.hits(call):
                return await give(_DOWN[outage.kind])
        return await server.compute()

    def connected(self, name: str, bad: Bad) -> SimulatedUpstream:
        async def script(server: Server, call: Call) -> Outcome:
            return await give(bad) if is_bad(call) else await self.script(server, call)

        server = Server(script, slots=self.server_slots, latency_s=self.latency_s)
        made = SimulatedUpstream(
            server, name, models=self.models, slots=self.slots, weight=self.weight, timeout_s=10.0
        )
        return made.connected()


@st.composite
def outages(draw: st.DrawFn) -> Down:
    kind = draw(st.sampled_from(sorted(_DOWN)))
    since_s = draw(st.floats(0.0, 60.0))
    model = None if kind == "connection refused" else draw(st.sampled_from((None, *MODELS)))
    return Down(kind, since_s, draw(st.floats(0.5, WELL_FROM_S - since_s)), model)


CHANGES = ("active", "paused", "draining", "removed", "added again", "no models", "all models", "a")

upstream_plans = st.builds(
    UpstreamPlan,
    models=st.frozensets(st.sampled_from(MODELS), min_size=1),
    slots=st.none() | st.integers(1, 16),
    server_slots=st.integers(1, 16),
    latency_s=st.floats(0.05, 1.0),
    weight=st.sampled_from((1.0, 1.0, 2.0, 0.0)),
    outages=st.lists(outages(), max_size=2),
    changes=st.lists(st.tuples(st.floats(0.0, 100.0), st.sampled_from(CHANGES)), max_size=4),
)


def changed(it: SimulatedUpstream | None, change: str, made: SimulatedUpstream) -> SimulatedUpstream | None:
    """The upstream after a change; None once it is removed."""
    if change == "removed":
        return None
    if it is None:
        return made.connected() if change == "added again" else None
    models = {"no models": frozenset[str](), "all models": frozenset(MODELS), "a": frozenset("a")}
    if change in models:
        return it.but(models=models[change])
    return it if change == "added again" else it.but(state=UpstreamState(change))


def history(
    plans: Sequence[UpstreamPlan], made: Sequence[SimulatedUpstream], *, ends_well: bool
) -> list[tuple[float, list[SimulatedUpstream]]]:
    """All upstreams after each change; in the end each is as it was at first."""
    state: list[SimulatedUpstream | None] = list(made)
    changes = sorted((at, place, change) for place, plan in enumerate(plans) for at, change in plan.changes)
    found: list[tuple[float, list[SimulatedUpstream]]] = []
    for at, place, change in changes:
        state[place] = changed(state[place], change, made[place])
        found.append((at, [it for it in state if it is not None]))
    if ends_well:
        found.append((WELL_FROM_S, [it or made[place].connected() for place, it in enumerate(state)]))
        last = [
            it.but(state=UpstreamState.ACTIVE, models=made[place].models)
            for place, it in enumerate(found[-1][1])
        ]
        found[-1] = WELL_FROM_S, last
    return found


@simulations
@given(
    plans=st.lists(upstream_plans, min_size=2, max_size=3),
    bad=st.sampled_from(sorted(BAD_LINES)),
    counts=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8), st.floats(0.0, 60.0)), max_size=3),
    mixed=st.integers(1, 60),
    seed=st.integers(0, 1 << 16),
)
def test_lines_are_answered_once_whatever_becomes_of_the_upstreams(
    plans: Sequence[UpstreamPlan], bad: str, counts: Sequence[tuple[int, int, float]], mixed: int, seed: int
):
    made = [plan.connected(f"u{place}", BAD_LINES[bad]) for place, plan in enumerate(plans)]
    served = sorted(frozenset[str]().union(*(plan.models for plan in plans)))
    batches = [
        Lines(
            [*named(f"bad {place}", bad_count), *named(f"good {place}", good)],
            model=served[place % len(served)],
            at=at,
            deadline_s=DEADLINE_S,
        )
        for place, (good, bad_count, at) in enumerate(counts)
    ]
    models = [served[place % len(served)] for place in range(mixed)]
    batches.append(Lines(named("mixed", mixed), models=models, deadline_s=DEADLINE_S))
    changes = history(plans, made, ends_well=True)
    is_always_served = all(
        "models" not in change and change != "a" for plan in plans for _, change in plan.changes
    )
    result = simulate(made, batches, changes=changes, seed=seed)
    for batch in batches:
        for content in batch.contents:
            is_error = batch.is_error(content)
            assert is_error is not None, content
            assert is_error is content.startswith("bad") or not is_always_served, content
    calls = [call for it in made for call in it.server.calls if not call.is_cheap]
    outside: dict[str, int] = {}
    for place, plan in enumerate(plans):
        for call in made[place].server.calls:
            if not any(outage.hits(call) for outage in plan.outages):
                outside[call.content] = outside.get(call.content, 0) + 1
    assert max((outside.get(call.content, 0) for call in calls), default=0) <= 4 * 8 * len(plans)
    assert result.ended_at < DEADLINE_S


@simulations
@given(
    plans=st.lists(upstream_plans, min_size=1, max_size=3),
    ends=st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans()), min_size=4, max_size=4),
    models=st.lists(st.sampled_from((*MODELS, "unknown")), min_size=4, max_size=4),
    seed=st.integers(0, 1 << 16),
)
def test_nothing_is_left_of_batches_that_are_cancelled_or_lost_at_any_moment(
    plans: Sequence[UpstreamPlan],
    ends: Sequence[tuple[float, bool]],
    models: Sequence[str],
    seed: int,
):
    made = [plan.connected(f"u{place}", OUTAGES["500"]) for place, plan in enumerate(plans)]
    batches = [
        Lines([*named(f"bad {place}", 10), *named(f"good {place}", 200)], model=model)
        for place, model in enumerate(models[:-1])
    ]
    batches.append(Lines(named("mixed", 200), models=[*models] * 50))
    result = simulate(
        made,
        batches,
        changes=history(plans, made, ends_well=False),
        cancel=[(at, place) for place, (at, is_lost) in enumerate(ends) if not is_lost],
        lose=[(at, place) for place, (at, is_lost) in enumerate(ends) if is_lost],
        seed=seed,
    )
    assert result.ended_at <= 31.0
