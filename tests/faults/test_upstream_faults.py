"""A batch meets every fault of an upstream: each line ends once, and nothing is sent more than it must be."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest

from nightmill.core.batch import Batch, Status
from nightmill.telemetry import UpstreamHeld, UpstreamResumed
from tests.faults.conftest import FaultyMill, Plan, Rogue, Script, Step, answer, over, said, well
from tests.slow import IS_SLOW, only_slow

PAGE = b"<html><body><h1>A proxy, and not the model</h1></body></html>"
LATE_S = 1.0
"""Time of an attempt. Far above the duration of a quick answer on a busy machine."""


def status(line: str, *headers: str) -> Plan:
    return lambda _: (answer(b'{"error": {"message": "no"}}', status=line, headers=headers),)


def cut(custom_id: str, length: int) -> bytes:
    return answer(said(custom_id))[:length]


BREAKS: dict[str, Plan] = {
    "reset before an answer": lambda _: (Step.RESET,),
    "reset in the middle": lambda it: (cut(it, -9), Step.RESET),
    "truncated": lambda it: (cut(it, -9), Step.CLOSE),
    "truncated in the headers": lambda it: (cut(it, 40), Step.CLOSE),
    "broken chunks": lambda _: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\nzz\r\n",
        Step.CLOSE,
    ),
    "no last chunk": lambda _: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        Step.CLOSE,
    ),
    "invalid JSON": lambda it: (answer(said(it)[:-1]),),
    "an empty body": lambda _: (answer(b""),),
    "a page from a proxy": lambda _: (answer(PAGE),),
    "a length too long": lambda it: (
        answer(said(it)).replace(b"Content-Length: ", b"Content-Length: 9"),
        Step.CLOSE,
    ),
    "a length too short": lambda it: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + said(it),
        Step.CLOSE,
    ),
    "not HTTP": lambda _: (b"220 mail.example ESMTP\r\n", Step.CLOSE),
}
LATE: dict[str, Plan] = {
    "late": lambda it: (2 * LATE_S, answer(said(it))),
    "never": lambda _: (Step.HANG,),
    "a slow trickle": lambda _: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        *[part for _ in range(50) for part in (b" ", 3 * LATE_S / 50)],
        Step.HANG,
    ),
}
FAULTS = {
    "500": status("500 Internal Server Error"),
    "502": status("502 Bad Gateway"),
    "a page with 502": lambda _: (answer(PAGE, status="502 Bad Gateway"),),
    "503": status("503 Service Unavailable"),
    "504": status("504 Gateway Timeout"),
    "408": status("408 Request Timeout"),
    "402": status("402 Payment Required"),
    "409": status("409 Conflict"),
    "410": status("410 Gone"),
    "451": status("451 Unavailable For Legal Reasons"),
}
PATIENCE = {
    "429": status("429 Too Many Requests"),
    "429 in seconds": status("429 Too Many Requests", "Retry-After: 0"),
    "429 in a date gone by": status(
        "429 Too Many Requests", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", "Connection: close"
    ),
    "429 in nonsense": status("429 Too Many Requests", "Retry-After: soon"),
    "503 in seconds": status("503 Service Unavailable", "Retry-After: 0"),
}
FINAL = {f"{code}": status(f"{code} No") for code in (400, 404, 405, 413, 414, 415, 422, 501)}


@pytest.fixture
def mill(mill: FaultyMill, transport: str) -> FaultyMill:
    mill.transport = transport
    return mill


async def test_faults_that_pass_cost_attempts_and_no_answer(mill: FaultyMill, rogue: Rogue):
    """Every line meets its fault twice, some of them over connections that others have used before."""
    passing = BREAKS | LATE | FAULTS | PATIENCE
    for name, plan in passing.items():
        rogue.plays(name, plan, times=2)
    plain = [f"plain {number}" for number in range(20)]
    batch = await mill.batch_of_lines(*plain[:10], *passing, *plain[10:])
    [ended] = await mill.run_to_the_end(mill.sender(rogue, timeout_s=LATE_S), batch)
    rows = await mill.results(ended)
    assert (ended.status, ended.tally.completed, ended.tally.failed) == (Status.COMPLETED, len(rows), 0)
    asked = {name: rogue.asked[name] for name in passing if rogue.asked[name] != 3}
    # A reused connection that closes without a byte is tried anew at once, within the same attempt.
    assert asked.keys() <= {"reset before an answer"}
    assert all(3 <= times <= 5 for times in asked.values())
    assert all(rogue.asked[name] == 1 for name in plain)


async def test_faults_that_stay_settle_their_line_and_no_other(mill: FaultyMill, rogue: Rogue):
    lasting = BREAKS | LATE | FAULTS | FINAL
    for name, plan in lasting.items():
        rogue.plays(name, plan)
    plain = [f"plain {number}" for number in range(20)]
    batch = await mill.batch_of_lines(*plain[:10], *lasting, *plain[10:])
    worker = mill.sender(rogue, timeout_s=LATE_S, max_attempts=3)
    [ended] = await mill.run_to_the_end(worker, batch)
    rows = await mill.results(ended)
    assert (ended.status, ended.tally.completed, ended.tally.failed) == (
        Status.COMPLETED,
        len(plain),
        len(lasting),
    )
    for name in BREAKS:
        given = rows[name]["error"] or rows[name]["response"]["body"]["error"]
        assert given["code"] in ("upstream_broken", "invalid_upstream_answer"), name
        assert given["message"], name
    for name in LATE:
        assert rows[name]["response"] is None
        assert rows[name]["error"]["code"] == "request_timeout"
        assert f"{LATE_S:g} seconds" in rows[name]["error"]["message"]
    for name in FAULTS | FINAL:
        if name.isdecimal():
            assert rows[name]["response"]["status_code"] == int(name)
            assert rows[name]["response"]["body"] == {"error": {"message": "no"}}
    assert {name: rogue.asked[name] for name in FINAL} == dict.fromkeys(FINAL, 1)
    # A failure counts as far as other lines were answered since the one before.
    assert all(3 <= rogue.asked[name] <= 25 for name in BREAKS | LATE | FAULTS), rogue.asked
    assert all(rogue.asked[name] == 1 for name in plain)


async def test_an_upstream_that_closes_every_connection_costs_no_line_and_no_request(
    mill: FaultyMill, rogue: Rogue
):
    rogue.always = lambda it: (answer(said(it)), 0.002, Step.CLOSE)
    names = [f"line {number}" for number in range(200)]
    batch = await mill.batch_of_lines(*names)
    [ended] = await mill.run_to_the_end(mill.sender(rogue), batch)
    assert len(await mill.results(ended)) == ended.tally.completed == 200
    # Some meet the closing in its instant: they are sent again, within the same attempt.
    assert sum(rogue.asked.values()) <= 220


async def test_refusing_connections_burns_no_attempt(mill: FaultyMill, rogue: Rogue):
    """Compressed: an upstream that is away for an hour, and only one attempt for each line."""
    await rogue.stop()
    names = [f"line {number}" for number in range(40)]
    batch = await mill.batch_of_lines(*names)
    worker = mill.sender(rogue, max_attempts=1)

    async def come_back() -> None:
        while not any(isinstance(event, UpstreamHeld) for event in mill.events):  # noqa: ASYNC110 - a plain list
            await asyncio.sleep(0.05)
        await rogue.start()

    async with asyncio.TaskGroup() as group:
        group.create_task(come_back())
        [ended] = await mill.run_to_the_end(worker, batch)
    assert len(await mill.results(ended)) == ended.tally.completed == 40
    assert set(rogue.asked.values()) == {1}
    spoken = [type(event) for event in mill.events if isinstance(event, UpstreamHeld | UpstreamResumed)]
    assert spoken == [UpstreamHeld, UpstreamResumed]


@over("aiohttp")
async def test_an_upstream_that_dies_and_comes_back_goes_on_where_it_was(mill: FaultyMill, rogue: Rogue):
    rogue.always = lambda it: (0.01, *well(it))
    names = [f"line {number}" for number in range(150)]
    batch = await mill.batch_of_lines(*names)
    worker = mill.sender(rogue, slots=8)

    async def die_again_and_again() -> None:
        for enough in (20, 60, 100) if IS_SLOW else (20, 100):
            await rogue.until_asked(enough)
            await rogue.stop()
            await asyncio.sleep(0.2)
            await rogue.start()

    async with asyncio.TaskGroup() as group:
        group.create_task(die_again_and_again())
        [ended] = await mill.run_to_the_end(worker, batch)
    assert len(await mill.results(ended)) == ended.tally.completed == 150
    assert rogue.asked.total() <= 150 + 5 * 8


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_the_time_the_upstream_asks_for_is_kept(mill: FaultyMill, rogue: Rogue, form: str):
    def throttle(custom_id: str) -> Script:
        until = datetime.now(UTC) + timedelta(seconds=2)  # the date has whole seconds: a pause of 1 to 2 s
        asked = "1" if form == "seconds" else format_datetime(until, usegmt=True)
        return status("429 Too Many Requests", f"Retry-After: {asked}")(custom_id)

    names = [f"line {number}" for number in range(30)]
    rogue.plays("line 0", throttle, times=1)
    batch = await mill.batch_of_lines(*names)
    [ended] = await mill.run_to_the_end(mill.sender(rogue, slots=4), batch)
    assert len(await mill.results(ended)) == ended.tally.completed == 30
    first, again = rogue.asked_at["line 0"]
    assert again - first > 0.9
    # The whole upstream was left in peace, but for what was in flight.
    early = [name for name, moments in rogue.asked_at.items() if moments[0] - first < 0.9]
    assert len(early) <= 8
    assert rogue.asked.total() == 31


REFUSALS = {
    "401": status("401 Unauthorized"),
    "403": status("403 Forbidden"),
    "a redirect": status("307 Temporary Redirect", "Location: http://127.0.0.1:1/v1/elsewhere"),
}


@over("aiohttp")
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_refusal_of_every_line_holds_the_batch_until_it_is_mended(
    mill: FaultyMill, rogue: Rogue, refusal: Plan
):
    rogue.always = refusal
    names = [f"line {number}" for number in range(60)]
    batch = await mill.batch_of_lines(*names)
    worker = mill.sender(rogue, slots=8, max_attempts=1)

    async def mend() -> None:
        await rogue.until_asked(12)
        while not any(isinstance(event, UpstreamHeld) for event in mill.events):
            await rogue.until_asked(rogue.asked.total() + 1)
        assert (await mill.now(batch)).tally.answered == 0
        rogue.always = well

    async with asyncio.TaskGroup() as group:
        group.create_task(mend())
        [ended] = await mill.run_to_the_end(worker, batch)
    assert len(await mill.results(ended)) == ended.tally.completed == 60
    assert rogue.asked.total() < 60 + 30
    [held] = [event for event in mill.events if isinstance(event, UpstreamHeld)]
    assert "check upstream." in held.reason
    assert held.needs_operator


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_refusal_of_one_line_settles_it(mill: FaultyMill, rogue: Rogue, refusal: Plan):
    """After a bounded number of tries, since other lines are answered."""
    rogue.plays("odd", refusal)
    batch = await mill.batch_of_lines(*[f"line {number}" for number in range(20)], "odd", "last")
    worker = mill.sender(rogue, slots=1, max_attempts=3, random=Random(7).random)
    [ended] = await mill.run_to_the_end(worker, batch)
    rows = await mill.results(ended)
    assert (ended.tally.completed, ended.tally.failed) == (21, 1)
    assert rows["odd"]["response"]["status_code"] in (401, 403, 307)
    assert 3 <= rogue.asked["odd"] <= 12


@only_slow
@over("lean")
async def test_a_poison_line_that_kills_the_upstream_is_settled_and_harms_no_other(
    mill: FaultyMill, rogue: Rogue
):
    rogue.always = lambda it: (0.02, *well(it))
    rogue.plays("poison", lambda _: (Step.HANG,))
    names = [f"line {number}" for number in range(100)]
    batch = await mill.batch_of_lines(*names[:50], "poison", *names[50:])
    # With jitter: without it those that died with the poison line come back with it.
    worker = mill.sender(rogue, slots=16, max_attempts=4, random=Random(7).random)

    async def die_of_it() -> None:
        died = 0
        while True:
            if rogue.asked["poison"] > died:
                died = rogue.asked["poison"]
                await rogue.stop()
                await asyncio.sleep(0.05)
                await rogue.start()
            await rogue.until_asked(rogue.asked.total() + 1)

    async with asyncio.TaskGroup() as group:
        dying = group.create_task(die_of_it())
        [ended] = await mill.run_to_the_end(worker, batch)
        dying.cancel()
    rows = await mill.results(ended)
    assert (ended.tally.completed, ended.tally.failed) == (100, 1)
    assert rows["poison"]["error"]["code"] == "upstream_broken"
    # A break on a reused connection counts as half an attempt, and need not have been read.
    assert 2 <= rogue.asked["poison"] <= 40


async def test_a_poison_line_that_breaks_connections_in_use_comes_to_an_end(mill: FaultyMill, rogue: Rogue):
    """Others keep connections warm, so that each of its attempts goes out over a reused one first."""
    rogue.plays("poison", lambda _: (0.005, Step.CLOSE))
    names = [f"line {number}" for number in range(4)]
    batch = await mill.batch_of_lines(*names, "poison", *[f"late {number}" for number in range(100)])
    rogue.always = lambda it: (0.005, *well(it))
    worker = mill.sender(rogue, slots=4, max_attempts=5)
    [ended] = await mill.run_to_the_end(worker, batch)
    rows = await mill.results(ended)
    assert (ended.tally.completed, ended.tally.failed) == (104, 1)
    assert rows["poison"]["error"]["code"] == "upstream_broken"
    assert 5 <= rogue.asked["poison"] <= 12, "each attempt and a half went out twice"


@only_slow
@over("lean")
async def test_a_slow_line_does_not_delay_the_end_of_a_bad_line_of_its_model(mill: FaultyMill, rogue: Rogue):
    """Only the cheap request can show that the model answers, and the bad line needs it at once."""
    rogue.plays("slow", lambda _: (Step.HANG,))
    rogue.plays("bad", status("500 Internal Server Error"))
    slow = await mill.batch_of_lines("slow")
    bad: list[Batch] = []

    async def is_bad_settled() -> bool:
        if rogue.asked["slow"] < 2:
            return False
        if not bad:
            bad.append(await mill.batch_of_lines("bad"))
            mill.notifier.notify()
        return (await mill.now(bad[0])).status.is_terminal

    await mill.run(mill.sender(rogue, timeout_s=6, max_attempts=3), until=is_bad_settled, timeout_s=40)
    assert (await mill.now(bad[0])).tally.failed == 1
    assert rogue.asked["bad"] <= 10
    assert (await mill.now(slow)).tally.answered == 0
