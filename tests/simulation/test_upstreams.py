"""Several model servers, some of which fail, stop, or come and go, in virtual time."""

import pytest

from nightmill.core.outcome import Outcome
from nightmill.core.upstream_setting import UpstreamState
from nightmill.telemetry import UpstreamHeld, UpstreamResumed
from tests.simulation.scripts import BAD_LINES, OUTAGES, Bad, down, every_tenth_bad, gives, is_bad, named
from tests.simulation.simulator import Call, Lines, Script, Server, error, simulate
from tests.simulation.upstreams import SimulatedUpstream

WITHOUT_MODEL = error(404, code="model_not_found")

DOWN: dict[str, Bad] = {
    **OUTAGES,
    "no such model": WITHOUT_MODEL,
    "429 with long Retry-After": error(429, retry_after_s=60.0),
}


async def well(server: Server, call: Call) -> Outcome:
    return await server.compute()


def upstream(
    name: str,
    script: Script = well,
    *,
    server_slots: int = 1_000,
    latency_s: float = 0.1,
    models: str | None = "m",
    **settings: object,
) -> SimulatedUpstream:
    """One that lists the models of `models`, which are single letters."""
    server = Server(script, slots=server_slots, latency_s=latency_s)
    listed = None if models is None else frozenset(models)
    return SimulatedUpstream(server, name, models=listed).but(**settings).connected()


def calls_at(*upstreams: SimulatedUpstream) -> list[int]:
    return [sum(not call.is_cheap for call in it.server.calls) for it in upstreams]


def paused(it: SimulatedUpstream) -> SimulatedUpstream:
    return it.but(state=UpstreamState.PAUSED)


def draining(it: SimulatedUpstream) -> SimulatedUpstream:
    return it.but(state=UpstreamState.DRAINING)


# --- sharing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        (upstream("slow", slots=8, latency_s=0.1), upstream("fast", slots=24, latency_s=0.1)),
        (upstream("slow", slots=8, latency_s=0.3), upstream("fast", slots=8, latency_s=0.1)),
        (upstream("slow", slots=24, latency_s=0.3), upstream("fast", slots=24, latency_s=0.1)),
    ],
)
def test_upstreams_of_speed_one_and_three_are_as_fast_as_both_together(
    slow: SimulatedUpstream, fast: SimulatedUpstream
):
    speed = sum((it.slots or 0) / it.server.latency_s for it in (slow, fast))
    batch = Lines(named("good", 2_000))
    result = simulate([slow, fast], [batch])
    assert batch.answered == 2_000
    assert result.ended_at <= 2_000 / speed / 0.97
    assert sum(calls_at(slow, fast)) == 2_000


def test_adaptive_upstreams_of_speed_one_and_three_are_as_fast_as_both_together():
    slow = upstream("slow", server_slots=8, slots=None)
    fast = upstream("fast", server_slots=24, slots=None)
    batch = Lines(named("good", 10_000))
    result = simulate([slow, fast], [batch])
    assert batch.answered == 10_000
    assert result.ended_at <= 10_000 / (320.0) / 0.97


# --- one of two fails --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOWN)
def test_an_upstream_that_fails_costs_no_line_while_another_serves_the_model_and_is_used_when_it_is_back(
    name: str,
):
    away = upstream("away", gives(DOWN[name], when=down(2.0, 20.0)), timeout_s=5.0, slots=4)
    other = upstream("other", slots=4)
    batch = Lines(named("good", 4_000))
    result = simulate([away, other], [batch])
    assert batch.answered == 4_000
    assert len([call for call in away.server.calls if 2.0 <= call.at < 20.0]) <= 2 * 4 + 20 + 18 / 2
    assert max(other.server.calls_of.values()) == 1
    assert sum(count > 1 for count in away.server.calls_of.values()) <= 10
    back_at = 62.0 if "Retry-After" in name else 20.0 + 31.0  # at the latest
    assert result.ended_at <= back_at + (4_000 - 40 * (back_at - 2.0) - 160) / 80 + 3.0
    assert sum(call.at >= back_at + 1.0 for call in away.server.calls) > 100


@pytest.mark.parametrize("name", ["500", "401", "connection refused", "time-out", "no such model"])
def test_two_upstreams_that_fail_in_turn_cost_no_line(name: str):
    first = upstream("first", gives(DOWN[name], when=down(1.0, 20.0)), timeout_s=5.0, slots=4)
    second = upstream("second", gives(DOWN[name], when=down(15.0, 40.0)), timeout_s=5.0, slots=4)
    batch = Lines(named("good", 2_000))
    result = simulate([first, second], [batch])
    assert batch.answered == 2_000 or name == "no such model"
    assert result.ended_at <= 100.0


@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_that_fail_everywhere_settle_with_few_calls(name: str):
    script = gives(BAD_LINES[name], when=is_bad)
    first, second = (upstream(it, script, timeout_s=5.0, slots=8) for it in ("first", "second"))
    batch = Lines(every_tenth_bad(400))
    simulate([first, second], [batch])
    assert (batch.answered, batch.failed) == (360, 40)
    calls = first.server.calls_of + second.server.calls_of
    assert max(calls[content] for content in batch.contents if content.startswith("bad")) <= 3 * 8
    assert max(calls[content] for content in batch.contents if content.startswith("good")) <= 3


def test_a_line_that_fails_at_one_upstream_is_answered_by_another():
    first = upstream("first", gives(error(500), when=is_bad), slots=8)
    second = upstream("second", slots=8)
    batch = Lines(every_tenth_bad(400))
    simulate([first, second], [batch])
    assert batch.answered == 400
    assert max(first.server.calls_of.values()) == 1


# --- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [error(429, retry_after_s=45.0), error(500), error(401), WITHOUT_MODEL])
def test_a_hold_of_a_model_at_one_upstream_delays_no_other_model_and_no_other_upstream(bad: Bad):
    first = upstream("first", gives(bad, when=lambda call: call.model == "a"), models="ab", slots=8)
    second = upstream("second", models="a", slots=8)
    held, other = Lines(named("a", 400), model="a"), Lines(named("b", 400), model="b")
    simulate([first, second], [held, other], until_s=44.0)
    assert (held.answered, other.answered) == (400, 400)
    assert max(held.answered_at()[-1], other.answered_at()[-1]) <= 10.0


def test_a_model_that_no_upstream_serves_fails_after_a_while_and_no_sooner():
    both = [upstream("first", models="a"), upstream("second", models="b")]
    batch = Lines(named("good", 30), models=["a", "b", "c"] * 10, at=5.0)
    simulate(both, [batch])
    assert (batch.answered, batch.failed) == (20, 10)
    failed = [row for row in batch.writer.rows.values() if row.is_error]
    assert all(b'"model_not_found"' in row.text for row in failed)
    assert [at for at in batch.writer.settled_at.values() if at > 6.0] == [pytest.approx(65.0, abs=0.1)] * 10


def test_a_model_waits_while_an_upstream_does_not_say_what_it_serves():
    known, unknown = upstream("known", models="a"), upstream("unknown", models=None)
    batch = Lines(named("good", 10), model="b")
    away = unknown.but(state=UpstreamState.PAUSED)
    simulate(
        [known, away], [batch], changes=[(500.0, [known, away.but(models=frozenset("b"))])], until_s=600.0
    )
    assert batch.settled == 0
    simulate([known, unknown], [batch])
    assert batch.answered == 10


def test_a_model_that_is_listed_again_in_time_is_answered():
    first, second = upstream("first", models="a"), upstream("second", models="")
    batch = Lines(named("good", 10), model="b")
    listed = second.but(models=frozenset("b"))
    simulate([first, second], [batch], changes=[(50.0, [first, listed])])
    assert batch.answered == 10
    assert calls_at(first, second) == [0, 10]


def test_a_line_goes_where_its_alias_is_served():
    first = upstream("first", models="a", aliases={"x": "a"})
    second = upstream("second", models="xa", slots=2)
    third = upstream("third", models="a", aliases={"x": "b"})
    batch = Lines(named("good", 300), model="x")
    simulate([first, second, third], [batch])
    assert batch.answered == 300
    asked = [{call.model for call in it.server.calls} for it in (first, second, third)]
    assert asked == [{"a"}, {"x"}, {"b"}]


def test_a_batch_of_several_models_is_sent_to_all_upstreams_at_once():
    both = [upstream("first", models="a", slots=4), upstream("second", models="b", slots=4)]
    batch = Lines(named("good", 400), models=["a", "b"] * 200)
    result = simulate(both, [batch])
    assert batch.answered == 400
    assert result.ended_at <= 5.5  # 5 s at 40 lines a second each


def test_a_list_that_changes_moves_the_model():
    first, second = upstream("first", models="a", slots=4), upstream("second", models="b", slots=4)
    batch = Lines(named("good", 400), model="a")
    moved = [first.but(models=frozenset("b")), second.but(models=frozenset("a"))]
    simulate([first, second], [batch], changes=[(3.0, moved)])
    assert batch.answered == 400
    assert [max(call.at for call in first.server.calls), second.server.calls[0].at] == [
        pytest.approx(3.0, abs=0.2)
    ] * 2


# --- the reserve -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["500", "401", "connection refused", "429 with long Retry-After"])
def test_a_reserve_is_used_only_while_the_others_can_not_answer(name: str):
    main = upstream("main", gives(DOWN[name], when=down(5.0, 20.0)), slots=4)
    reserve = upstream("reserve", weight=0.0, slots=4)
    batch = Lines(named("good", 4_000))
    simulate([main, reserve], [batch])
    assert batch.answered == 4_000
    back_at = 66.0 if "Retry-After" in name else 51.0
    used = [call.at for call in reserve.server.calls]
    assert 5.0 <= min(used) <= 6.0
    assert max(used) <= back_at
    assert len(used) >= 500


def test_a_line_that_fails_does_not_go_to_the_reserve_while_another_upstream_can_answer():
    first = upstream("first", gives(error(500), when=is_bad), slots=4)
    second = upstream("second", slots=1)
    reserve = upstream("reserve", weight=0.0)
    batch = Lines(every_tenth_bad(200))
    simulate([first, second, reserve], [batch])
    assert batch.answered == 200
    assert calls_at(reserve) == [0]


# --- changes while lines are sent --------------------------------------------------------------------


def fails_from(since_s: float, bad: Bad = OUTAGES["500"]) -> Script:
    return gives(bad, when=down(since_s, 1e9))


@pytest.mark.parametrize("bad", [None, "500", "401", "connection refused", "time-out"])
@pytest.mark.parametrize("change", ["paused", "draining", "removed"])
def test_an_upstream_that_is_taken_away_leaves_its_lines_to_the_other(change: str, bad: str | None):
    script = well if bad is None else fails_from(0.5, OUTAGES[bad])
    first = upstream("first", script, slots=8, timeout_s=3.0, latency_s=1.0)
    second = upstream("second", slots=8)
    batch = Lines(named("good", 400))
    after = {
        "paused": [paused(first), second],
        "draining": [draining(first), second],
        "removed": [second],
    }[change]
    result = simulate([first, second], [batch], changes=[(1.5, after)])
    assert batch.answered == 400
    assert max(call.at for call in first.server.calls) <= 1.5
    assert result.ended_at <= 10.0


@pytest.mark.parametrize("bad", ["500", "time-out"])
def test_the_only_upstream_that_is_replaced_leaves_its_lines_to_the_new_one(bad: str):
    first = upstream("first", fails_from(0.95, OUTAGES[bad]), slots=8, timeout_s=3.0)
    second = upstream("second", slots=8)
    batch = Lines(named("good", 400))
    simulate([first], [batch], changes=[(1.005, []), (30.0, [second])])
    assert batch.answered == 400


def test_a_held_upstream_that_is_removed_is_no_longer_announced_as_held():
    first = upstream("first", fails_from(0.5, OUTAGES["401"]), slots=8)
    second = upstream("second", slots=8)
    batch = Lines(named("good", 400))
    result = simulate([first, second], [batch], changes=[(4.0, [second])])
    changes = [type(event) for event in result.events if getattr(event, "upstream", None) == "first"]
    assert changes[0] is UpstreamHeld
    assert changes[-1] is UpstreamResumed


def test_lines_wait_for_a_paused_upstream_and_for_a_removed_one():
    first, second = upstream("first", models="a", slots=4), upstream("second", models="b", slots=4)
    batch, other = Lines(named("a", 100), model="a"), Lines(named("b", 100), model="b")
    states = [(1.0, [paused(first), second]), (500.0, [first, second])]
    simulate([first, second], [batch, other], changes=states)
    assert (batch.answered, other.answered) == (100, 100)
    assert other.answered_at()[-1] < 3.0
    assert not [call for call in first.server.calls if 1.0 < call.at < 500.0]
    again = Lines(named("a", 100), model="a")
    states = [(1.0, [second]), (50.0, [first.connected(), second])]
    simulate([first, second], [again], changes=states)
    assert again.answered == 100


def test_an_upstream_that_drains_still_gets_no_line_when_no_other_serves_the_model():
    first, second = upstream("first", models="a", slots=4), upstream("second", models="b", slots=4)
    batch = Lines(named("a", 100), model="a")
    simulate([first, second], [batch], changes=[(1.0, [draining(first), second]), (300.0, [first, second])])
    assert batch.answered == 100
    assert not [call for call in first.server.calls if 1.0 < call.at < 300.0]


def test_an_upstream_that_is_added_takes_its_share():
    first, second = upstream("first", slots=4), upstream("second", slots=12)
    batch = Lines(named("good", 1_000))
    result = simulate([first], [batch], changes=[(5.0, [first, second])])
    assert batch.answered == 1_000
    assert result.ended_at <= 5.0 + 800 / 160 + 0.3


def test_nothing_is_left_of_lines_whose_batch_or_lease_ends_while_an_upstream_is_held():
    first = upstream("first", fails_from(0.95), models="ab", slots=8)
    second = upstream("second", models="a", slots=8)
    batches = [
        Lines(named(f"{model} {number}", 100), model=model, deadline_s=400.0)
        for number, model in enumerate("abab")
    ]
    result = simulate(
        [first, second],
        batches,
        cancel=[(1.02, 0), (3.0, 1)],
        lose=[(1.02, 2), (3.0, 3)],
        changes=[(2.0, [paused(first), second])],
    )
    assert result.ended_at <= 10.0
