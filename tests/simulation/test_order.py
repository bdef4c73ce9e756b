"""The order between batches over a real worker, in virtual time: when lines begin, and who gets how much."""

import asyncio
from collections import Counter

import pytest

from nightmill.core.outcome import Answered, Outcome
from tests.simulation.scripts import gives
from tests.simulation.simulator import Call, Lines, Script, Server, error, simulate
from tests.simulation.worker_simulator import SimulatedBatch, run_worker

MILLION = 1_000_000


def begins(server: Server, name: str) -> list[float]:
    """Virtual times at which the lines of a batch were sent."""
    return [call.at for call in server.calls if call.content.startswith(name + " ")]


def takes(latency_s: float) -> Script:
    async def script(_server: Server, _call: Call) -> Outcome:
        await asyncio.sleep(latency_s)
        return Answered(200, b'{"choices": []}')

    return script


def spread_out(server: Server, average_s: float) -> float:
    """A latency from half the average to one and a half, so that slots become free one by one."""
    return average_s * (0.5 + len(server.calls) * 0.618034 % 1.0)


@pytest.mark.parametrize("at", [3.0, 10.37, 14.9])
def test_ten_lines_behind_a_million_begin_within_two_seconds_of_an_upstream_with_free_slots(at: float):
    server = Server(takes(0.05))
    run_worker(server, [SimulatedBatch("large", MILLION), SimulatedBatch("small", 10, at=at)], until_s=at + 3)
    small = begins(server, "small")
    assert len(small) == 10
    assert small[-1] - at < 2.0
    assert len(begins(server, "large")) > 1_000 * at


def test_ten_lines_behind_many_large_batches_of_several_projects_begin_within_two_seconds():
    large = [SimulatedBatch(f"large{number}", MILLION, project="abc"[number % 3]) for number in range(30)]
    server = Server(takes(0.05))
    small = [
        SimulatedBatch("small", 10, at=12.3, project="c"),
        SimulatedBatch("new", 10, at=12.3, project="d"),
    ]
    run_worker(server, [*large, *small], until_s=16)
    for name in ("small", "new"):
        assert len(begins(server, name)) == 10
        assert begins(server, name)[0] - 12.3 < 2.0


@pytest.mark.parametrize("priority", [-10, 0, 10])
def test_ten_lines_behind_a_million_of_any_priority_begin_within_two_seconds(priority: int):
    server = Server(takes(0.05))
    large = SimulatedBatch("large", MILLION, priority=priority)
    run_worker(server, [large, SimulatedBatch("small", 10, at=9.5)], until_s=13)
    assert begins(server, "small")[0] - 9.5 < 2.0


@pytest.mark.parametrize("at", [31.0, 47.3])
def test_ten_lines_behind_a_million_begin_within_the_time_of_a_line_of_a_full_upstream(at: float):
    server = Server(takes(30.0))
    run_worker(server, [SimulatedBatch("large", MILLION), SimulatedBatch("small", 10, at=at)], until_s=95)
    assert server.calls[63].at < 2.0  # all slots are in use from here on
    assert begins(server, "small") == [pytest.approx(server.calls[63].at + 60.0)] * 10


def test_ten_lines_get_the_slots_of_a_full_upstream_that_become_free_one_by_one():
    async def script(server: Server, _call: Call) -> Outcome:
        await asyncio.sleep(spread_out(server, 20.0))
        return Answered(200, b'{"choices": []}')

    server = Server(script)
    run_worker(server, [SimulatedBatch("large", MILLION), SimulatedBatch("small", 10, at=40.0)], until_s=70)
    small = begins(server, "small")
    assert len(small) == 10
    after_lease = [call for call in server.calls if small[0] <= call.at <= small[-1]]
    assert small[0] - 40.0 < 2.0 + 2 * 20.0 / 64
    assert len(after_lease) <= 10 + 22  # at most one turn of the other batch in between


def test_a_changed_priority_has_effect_within_two_seconds_without_a_notification():
    async def script(server: Server, _call: Call) -> Outcome:
        await asyncio.sleep(spread_out(server, 0.5))
        return Answered(200, b'{"choices": []}')

    server = Server(script)
    raised = SimulatedBatch("raised", MILLION, priorities=[(30.0, 3), (90.0, -3)])
    run_worker(server, [SimulatedBatch("plain", MILLION), raised], until_s=150)

    def share(since_s: float, until_s: float) -> float:
        counts = Counter(call.content.split()[0] for call in server.calls if since_s <= call.at < until_s)
        return counts["raised"] / counts["plain"]

    assert share(2.0, 30.0) == pytest.approx(1.0, rel=0.1)
    assert share(32.0, 90.0) == pytest.approx(8.0, rel=0.2)
    assert share(92.0, 150.0) == pytest.approx(1 / 8, rel=0.2)


def test_a_batch_of_a_higher_priority_passes_batches_that_were_created_first():
    large = [SimulatedBatch(f"large{number}", MILLION) for number in range(10)]
    server = Server(takes(0.05))
    run_worker(server, [*large, SimulatedBatch("urgent", MILLION, at=5.0, priority=5)], until_s=15)
    late = [call for call in server.calls if call.at > 7.0]
    assert begins(server, "urgent")[0] < 7.0
    assert len(begins(server, "urgent")) > 0.8 * len(late)


@pytest.mark.parametrize("reports_usage", [True, False])
def test_batches_with_long_answers_get_fewer_lines_and_the_same_work(reports_usage: bool):
    async def script(server: Server, call: Call) -> Outcome:
        await asyncio.sleep(spread_out(server, 0.5))
        tokens = 2_000 if call.content.startswith("long") else 100
        if reports_usage:
            usage = b'{"completion_tokens": %d, "total_tokens": %d}' % (tokens, tokens + 9)
            return Answered(200, b'{"choices": [], "usage": %b}' % usage)
        return Answered(200, b'{"choices": ["%b"]}' % (b"x" * 4 * tokens))

    server = Server(script)
    batches = [
        SimulatedBatch("long", MILLION, model="same"),
        SimulatedBatch("short", MILLION, model="same"),
    ]
    run_worker(server, batches, until_s=100)
    late = Counter(call.content.split()[0] for call in server.calls if call.at > 20.0)
    work = {"long": 8_000 + 130, "short": 400 + 130}
    expected = work["long"] / work["short"] if reports_usage else 8_300 / 750
    # Less than the whole share: a worker leases a segment at a time of a batch beside others.
    assert late["short"] / late["long"] == pytest.approx(expected, rel=0.25)


def test_a_slow_answer_holds_no_other_line_of_its_model_or_batch():
    async def script(server: Server, call: Call) -> Outcome:
        if call.content == "good 3":
            await asyncio.sleep(500.0)
        return await server.compute()

    batch, same = Lines(["good 3", *(f"more {number}" for number in range(2_000))]), Lines(["next 1"], at=2.0)
    other = Lines(["other 1"], model="B", at=2.0)
    simulate(Server(script), [batch, same, other], slots=8)
    assert batch.answered_at()[-2] < 2_000 * 0.1 / 7 + 1.0
    assert same.answered_at()[0] < 3.0
    assert other.answered_at()[0] < 3.0


def test_a_model_that_is_held_by_retry_after_holds_no_other_batch_of_the_worker():
    server = Server(gives(error(429, retry_after_s=300.0), when=lambda call: call.model == "A"))
    held = [SimulatedBatch(f"held{number}", MILLION, model="A") for number in range(3)]
    other = [
        SimulatedBatch("other", MILLION, model="B", at=5.0),
        SimulatedBatch("small", 10, model="B", at=8.0),
    ]
    run_worker(server, [*held, *other], until_s=12)
    assert begins(server, "other")[0] < 7.0
    assert begins(server, "small")[0] < 10.0
    assert len(begins(server, "other")) > 1_000
