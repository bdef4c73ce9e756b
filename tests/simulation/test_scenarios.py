"""Model servers that fail in a hundred ways, in virtual time: what becomes of the lines, and at what cost."""

import asyncio
from functools import cache

import pytest

from nightmill.core.outcome import Outcome, Unreachable
from nightmill.telemetry import UpstreamHeld, UpstreamResumed
from tests.simulation.scripts import (
    BAD_LINES,
    OUTAGES,
    Bad,
    down,
    every_tenth_bad,
    give,
    gives,
    is_bad,
    named,
)
from tests.simulation.simulator import Call, Lines, Result, Server, error, simulate

MAX_ATTEMPTS = 8

MOST_CALLS = 2 * MAX_ATTEMPTS
"""Calls of a line that always fails while its neighbours are answered: `max_attempts`, and those that count
in part or not at all, since nothing else was answered in between.
"""

OPERATOR_PAUSE_S = 30.0
LONGEST_PAUSE_S = 10.0


def longest_pause_s(name: str) -> float:
    by_operator = {"401", "402", "empty account", "404 in HTML", "redirect"}
    return OPERATOR_PAUSE_S if name in by_operator else LONGEST_PAUSE_S


def kinds(result: Result) -> list[type]:
    return [type(event) for event in result.events]


def most_calls_of_a_line(server: Server) -> int:
    return max(count for content, count in server.calls_of.items() if content.startswith(("bad", "good")))


def calls_between(server: Server, since_s: float, until_s: float) -> int:
    return sum(since_s <= call.at < until_s for call in server.calls)


# --- lines that fail while their neighbours are answered ---------------------------------------------


def test_lines_that_are_always_refused_settle_and_do_not_delay_another_batch():
    server = Server(gives(error(429), when=is_bad))
    bad, good = Lines(named("bad", 200)), Lines(named("good", 10), at=30.0)
    result = simulate(server, [bad, good])
    assert (bad.failed, good.answered) == (200, 10)
    assert good.answered_at()[-1] < 31.0
    assert most_calls_of_a_line(server) <= MOST_CALLS
    assert result.ended_at < 180.0


@pytest.mark.parametrize("name", BAD_LINES)
def test_one_bad_line_among_twelve_settles_with_its_answer(name: str):
    server = Server(gives(BAD_LINES[name], when=is_bad))
    batch = Lines([*named("good", 6), "bad", *named("more good", 5)])
    simulate(server, [batch], timeout_s=5.0)
    assert (batch.answered, batch.failed) == (11, 1)
    assert batch.answered_at()[-1] < 0.2
    assert server.calls_of["bad"] <= MOST_CALLS


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("count", [1, 3])
def test_bad_lines_without_good_neighbours_settle_too(name: str, count: int):
    server = Server(gives(BAD_LINES[name], when=is_bad))
    batch = Lines(named("bad", count))
    simulate(server, [batch], timeout_s=5.0)
    assert batch.failed == count
    assert most_calls_of_a_line(server) <= 2 * MOST_CALLS  # every second call says nothing


@cache
def _end_of_good_lines_alone_s() -> float:
    batch = Lines([name for name in every_tenth_bad(1_000) if name.startswith("good")])
    simulate(Server(gives(error(500), when=is_bad), latency_s=0.05), [batch])
    return batch.answered_at()[-1]


@pytest.mark.parametrize("name", [name for name in BAD_LINES if name != "time-out"])
def test_good_lines_keep_their_speed_beside_a_tenth_of_bad_lines(name: str):
    server = Server(gives(BAD_LINES[name], when=is_bad), latency_s=0.05)
    batch = Lines(every_tenth_bad(1_000))
    result = simulate(server, [batch])
    assert (batch.answered, batch.failed) == (900, 100)
    pauses_s = 2 * 3.0 if "Retry-After" in name else 0.0  # until the refusals are seen to concern the lines
    assert batch.answered_at()[-1] <= 1.4 * _end_of_good_lines_alone_s() + pauses_s
    assert most_calls_of_a_line(server) <= MOST_CALLS
    assert len(result.events) <= 2 * bool(pauses_s)


def test_hanging_lines_leave_most_slots_to_the_good_lines():
    server = Server(gives(OUTAGES["time-out"], when=is_bad), latency_s=0.05)
    batch = Lines(every_tenth_bad(1_000))
    simulate(server, [batch], timeout_s=5.0)
    assert (batch.answered, batch.failed) == (900, 100)
    assert batch.answered_at()[-1] <= 20.0
    assert most_calls_of_a_line(server) <= MOST_CALLS


# --- outages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 200])
@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_costs_no_line_its_answer_and_few_calls(name: str, count: int):
    server = Server(gives(OUTAGES[name], when=down(0.15, 60.0)), latency_s=0.2)
    batch = Lines(named("good", count))
    result = simulate(server, [batch], timeout_s=5.0)
    assert batch.answered == count
    assert result.ended_at <= 60.0 + longest_pause_s(name) + 10.0
    assert calls_between(server, 10.0, 60.0) <= 50
    assert calls_between(server, 0.0, 60.0) <= 200 + 50


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_is_announced_once_and_ended_once(name: str):
    server = Server(gives(OUTAGES[name], when=down(0.15, 60.0)))
    result = simulate(server, [Lines(named("good", 200))], timeout_s=5.0)
    assert kinds(result) == [UpstreamHeld, UpstreamResumed]


@pytest.mark.parametrize("name", OUTAGES)
def test_the_calls_of_an_outage_do_not_grow_with_the_number_of_lines(name: str):
    few, many = (Server(gives(OUTAGES[name], when=down(0.0, 60.0))) for _ in range(2))
    simulate(few, [Lines(named("good", 100))], timeout_s=5.0)
    simulate(many, [Lines(named("good", 1_000))], timeout_s=5.0)
    assert calls_between(many, 0.0, 60.0) <= 1.2 * calls_between(few, 0.0, 60.0) + 5


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_past_the_deadline_settles_no_line(name: str):
    server = Server(gives(OUTAGES[name], when=down(0.0, 1e9)))
    batch = Lines(named("good", 100), deadline_s=600.0)
    result = simulate(server, [batch], timeout_s=5.0)
    assert (batch.answered, batch.failed) == (0, 0)
    assert result.ended_at == pytest.approx(600.0, abs=1.0)


def test_an_account_without_credit_for_an_hour_costs_no_line_its_answer():
    server = Server(gives(OUTAGES["empty account"], when=down(10.0, 3_610.0)), slots=4)
    batch = Lines(named("good", 1_000))
    result = simulate(server, [batch])
    assert batch.answered == 1_000
    assert kinds(result) == [UpstreamHeld, UpstreamResumed]
    assert calls_between(server, 20.0, 3_610.0) <= 3_600 / (OPERATOR_PAUSE_S / 2) + 20


def test_a_key_that_expires_twice_costs_no_line_its_answer():
    server = Server(
        gives(error(401), when=lambda call: 1.0 <= call.at < 20.0 or 60.0 <= call.at < 90.0), latency_s=1.0
    )
    batch = Lines(named("good", 3_000))
    result = simulate(server, [batch])
    assert batch.answered == 3_000
    assert kinds(result) == [UpstreamHeld, UpstreamResumed] * 2


def test_long_answers_from_before_an_outage_do_not_end_it():
    async def script(server: Server, call: Call) -> Outcome:
        if 10.0 <= call.at < 300.0:
            return await give(error(401))
        if call.at < 10.0:
            await asyncio.sleep(int(call.content.split()[1]))
        return await server.compute()

    server = Server(script)
    batch = Lines(named("good", 300))
    result = simulate(server, [batch])
    assert batch.answered == 300
    assert kinds(result) == [UpstreamHeld, UpstreamResumed]
    assert calls_between(server, 20.0, 300.0) <= 300.0 / (OPERATOR_PAUSE_S / 2) + 5


def test_a_server_that_starts_refuses_connections_then_loads_then_answers():
    async def script(server: Server, call: Call) -> Outcome:
        if call.at < 30.0:
            return await give(Unreachable("connection refused"))
        return await give(error(503)) if call.at < 60.0 else await server.compute()

    batch = Lines(named("good", 200))
    result = simulate(Server(script), [batch])
    assert batch.answered == 200
    assert result.ended_at < 80.0
    assert kinds(result) == [UpstreamHeld, UpstreamResumed] * 2  # the connection, then the model


def test_flapping_costs_no_line_its_answer():
    server = Server(gives(error(500), when=lambda call: int(call.at / 2) % 2 == 1))
    batch = Lines(named("good", 3_000))
    result = simulate(server, [batch])
    assert batch.answered == 3_000
    assert result.ended_at < 60.0
    assert kinds(result).count(UpstreamHeld) <= 2


def test_a_line_that_crashes_the_server_settles_and_the_others_are_answered():
    up_at = 0.0

    async def script(server: Server, call: Call) -> Outcome:
        nonlocal up_at
        if call.at < up_at:
            return await give(Unreachable("connection refused"))
        if is_bad(call):
            up_at = call.at + 20.0
            return await give(OUTAGES["connection reset"])
        return await server.compute()

    server = Server(script)
    batch = Lines([*named("good", 100), "bad", *named("more good", 100)])
    result = simulate(server, [batch])
    assert (batch.answered, batch.failed) == (200, 1)
    assert server.calls_of["bad"] <= 200 / 20 + 2 * MOST_CALLS
    assert result.ended_at < 1_800.0


# --- servers with too much to do ---------------------------------------------------------------------


def test_time_outs_in_the_queue_of_a_server_cost_no_line_its_answer():
    server = Server(gives(error(500), when=is_bad), slots=1, latency_s=1.5)
    batch = Lines(named("good", 64))
    result = simulate(server, [batch], timeout_s=6.0)
    assert batch.answered == 64
    assert result.ended_at <= 2.0 * 64 * 1.5


@pytest.mark.parametrize(
    ("refusal", "longest_s"), [(error(429), 25.0), (error(503), 25.0), (error(429, retry_after_s=1.0), 40.0)]
)
def test_a_server_that_refuses_what_it_can_not_compute_at_once_is_used_to_its_capacity(
    refusal: Outcome, longest_s: float
):
    computing = 0

    async def script(server: Server, call: Call) -> Outcome:
        nonlocal computing
        if computing >= 4:
            return await give(refusal)
        computing += 1
        try:
            return await server.compute()
        finally:
            computing -= 1

    server = Server(script)
    batch = Lines(named("good", 400))
    result = simulate(server, [batch])
    assert batch.answered == 400
    assert result.ended_at <= longest_s  # 10 s without a refusal
    assert len(server.calls) <= 2 * 400


def test_a_server_whose_capacity_halves_and_returns_answers_every_line():
    computing = 0

    async def script(server: Server, call: Call) -> Outcome:
        nonlocal computing
        if computing >= (16 if 20.0 <= call.at < 60.0 else 32):
            return await give(error(429))
        computing += 1
        try:
            return await server.compute()
        finally:
            computing -= 1

    batch = Lines(named("good", 2_000))
    result = simulate(Server(script, latency_s=1.0), [batch])
    assert batch.answered == 2_000
    assert result.ended_at <= 1.6 * (20 + 40 + (2_000 - 20 * 32 - 40 * 16) / 32)


def test_a_server_that_becomes_slower_until_nothing_is_answered_recovers():
    async def script(server: Server, call: Call) -> Outcome:
        await asyncio.sleep(min(call.at, 1e6) / 10 if call.at < 120.0 else 0.1)
        return await server.compute()

    batch = Lines(named("good", 2_000))
    result = simulate(Server(script, slots=32), [batch], timeout_s=6.0)
    assert batch.answered == 2_000
    assert result.ended_at < 180.0


# --- Retry-After, models and batches -----------------------------------------------------------------


def test_retry_after_zero_has_a_floor():
    server = Server(gives(error(429, retry_after_s=0.0), when=is_bad))
    simulate(server, [Lines(["bad"])], until_s=5.0)
    assert len(server.calls) <= 20


@pytest.mark.parametrize("status", [429, 503, 500, 401])
def test_retry_after_is_kept_at_any_status(status: int):
    server = Server(gives(error(status, retry_after_s=45.0), when=down(0.0, 40.0)), slots=4)
    batch = Lines(named("good", 20))
    simulate(server, [batch], slots=4)
    assert batch.answered == 20
    assert calls_between(server, 1.0, 45.0) == 0


def test_a_pause_of_one_model_delays_no_line_of_another():
    server = Server(gives(error(429, retry_after_s=45.0), when=lambda call: call.model == "A"))
    paused, other = Lines(named("good", 200), model="A"), Lines(named("more good", 10), model="B", at=1.0)
    simulate(server, [paused, other], until_s=44.0)
    assert other.answered == 10
    assert other.answered_at()[-1] < 1.3
    assert len([call for call in server.calls if call.model == "A"]) <= 64


def test_a_pause_of_one_model_delays_no_line_of_another_in_the_same_batch():
    server = Server(gives(error(429, retry_after_s=45.0), when=lambda call: call.model == "A"))
    batch = Lines(named("good", 400), models=["A", "B"] * 200)
    simulate(server, [batch], until_s=44.0)
    assert batch.answered == 200
    assert batch.answered_at()[-1] < 2.0


def test_a_pause_ends_with_the_batch_that_waits_for_it():
    server = Server(gives(error(429, retry_after_s=300.0), when=down(0.0, 1.0)))
    cancelled, later = Lines(named("good", 200)), Lines(named("more good", 10), at=3.0)
    result = simulate(server, [cancelled, later], cancel=[(2.0, 0)])
    assert later.answered == 10
    assert result.ended_at < 4.0
    assert kinds(result) == [UpstreamHeld, UpstreamResumed]


def test_a_new_batch_probes_a_held_model_at_once():
    server = Server(gives(error(401), when=down(0.0, 200.0)))
    first, second = Lines(named("good", 10)), Lines(named("more good", 10), at=201.0)
    simulate(server, [first, second])
    assert second.answered == 10
    assert second.answered_at()[-1] < 203.0


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_of_one_model_delays_no_line_of_another(name: str):
    bad: Bad = OUTAGES[name]
    if isinstance(bad, Unreachable):
        pytest.skip("a refused connection concerns the whole upstream")
    server = Server(gives(bad, when=lambda call: call.model == "A" and call.at < 60.0))
    down_model = Lines(named("good", 200), model="A")
    other = Lines(named("more good", 200), model="B", at=1.0)
    mixed = Lines(named("mixed", 200), models=["A", "B"] * 100, at=1.0)
    simulate(server, [down_model, other, mixed], timeout_s=5.0)
    assert (down_model.answered, other.answered, mixed.answered) == (200, 200, 200)
    free_at = 6.0 if name == "time-out" else 1.0  # when the attempts in flight have ended
    assert other.answered_at()[-1] < free_at + 1.5
    assert mixed.answered_at()[99] < free_at + 1.5


def test_hanging_lines_of_several_batches_and_models_settle():
    server = Server(gives(OUTAGES["time-out"], when=is_bad))
    batches = [
        Lines(every_tenth_bad(200), model=f"model {number % 2}", at=number * 7.0) for number in range(4)
    ]
    simulate(server, batches, timeout_s=5.0)
    assert [(batch.answered, batch.failed) for batch in batches] == [(180, 20)] * 4
    assert most_calls_of_a_line(server) <= 4 * MOST_CALLS  # four lines have each content


def test_a_line_that_failed_once_is_sent_again_soon_although_only_one_slot_is_used():
    async def one_fault(server: Server, call: Call) -> Outcome:
        if call.content == "bad" and server.calls_of["bad"] == 1:
            return error(500)
        return await server.compute()

    lines = Lines(["bad", *named("good", 2_000)])
    simulate(Server(one_fault), [lines], slots=1)
    assert lines.answered == 2_001
    assert lines.writer.settled_at[0] < 40
