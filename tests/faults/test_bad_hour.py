"""What a model server may do in a bad hour, seen from outside of a real `nightmill serve`.

No outage loses a line, a line that is refused for itself ends after a bounded number of tries, and the lines
beside it are answered. `make test` plays each hour in one way; `make test-slow` plays it over both
transports, and over both with a `kill -9` in the middle.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Plan, Rogue, answer, rogue_in_a_thread, said, well
from tests.faults.served import Served, Servers, wait_until
from tests.roles.conftest import request_line
from tests.slow import IS_SLOW, only_slow

TRIES = 3
"""`upstream.max_attempts` of these tests."""
HI = "Hi"
"""What the cheap request asks."""
LEAN, AIOHTTP = "lean", "aiohttp"
LEAN_KILLED, AIOHTTP_KILLED = "lean, killed in the middle", "aiohttp, killed in the middle"
TOO_LARGE = b'{"error": {"message": "request too large for the limit", "code": "rate_limit_exceeded"}}'


def status(line: str, *headers: str, body: bytes = b'{"error": {"message": "no"}}') -> Plan:
    return lambda _: (answer(body, status=line, headers=headers),)


def lines(names: Iterable[str], *, model: str = "m") -> bytes:
    return b"".join(request_line(name, model=model) for name in names)


def names(word: str, count: int) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    with rogue_in_a_thread() as server:
        yield server


# tests/simulation proves the same in virtual time.


def played(way: str) -> pytest.MarkDecorator:
    """The way in which the test runs in `make test`. The retries are the same over both transports, and
    `test_upstream_faults` reads every fault over both, so that one way of each hour is enough there."""
    ways = (LEAN, AIOHTTP, LEAN_KILLED, AIOHTTP_KILLED)
    return pytest.mark.parametrize("servers", ways if IS_SLOW else (way,), indirect=True)


@pytest.fixture
def servers(request: pytest.FixtureRequest, rogue: Rogue, tmp_path: Path) -> Iterator[Servers]:
    transport, _, killed = request.param.partition(", ")
    settings = {
        "upstream__transport": transport,
        "upstream__max_attempts": TRIES,
        "worker__beat_s": 0.1,
        "retention__free_bytes": 0,
    }
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path, rogue.url, settings, bool(killed), stack)


def results(served: Served, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The one row of each line, by custom_id. A row of the output file repeats what its line asked."""
    rows = served.rows(batch)
    assert len(rows) == len({row["custom_id"] for row in rows}) == batch["request_counts"]["total"]
    for row in rows:
        if row["error"] is None and "choices" in row["response"]["body"]:
            assert row["response"]["body"]["choices"][0]["message"]["content"] == row["custom_id"]
    return {row["custom_id"]: row for row in rows}


def assert_bounded(servers: Servers, rogue: Rogue, *bad: str) -> None:
    """Each line was sent a bounded number of times, from the start of each process on."""
    most = len(servers.lives) * 3 * TRIES
    assert {name: rogue.asked[name] for name in bad if rogue.asked[name] > most} == {}


def assert_answered(served: Served, batch: dict[str, Any], count: int) -> None:
    """Every line of the batch was answered."""
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    assert len(results(served, batch)) == count


@only_slow
@played(LEAN)
def test_lines_that_are_too_large_end_with_429_and_hold_up_no_other(servers: Servers, rogue: Rogue):
    """Many of them before a batch of good lines, and for another model one between good lines."""
    bad, beside = names("large", 200), names("beside", 11)
    for name in (*bad, "odd"):
        rogue.plays(name, status("429 Too Many Requests", body=TOO_LARGE))
    served = servers.start()
    many = served.batch(lines(bad))
    one = served.batch(lines([*beside, "odd"], model="b"))
    wait_until(lambda: rogue.asked["large 0"] > 0)
    good = served.batch(lines(names("good", 10)))
    assert_answered(served, served.until_ended(good, timeout_s=20), 10)
    served = servers.middle()
    ended, ended_one = (served.until_ended(batch_id, timeout_s=90) for batch_id in (many, one))
    assert ended["request_counts"] == {"total": 200, "completed": 0, "failed": 200}
    assert ended_one["request_counts"] == {"total": 12, "completed": 11, "failed": 1}
    rows = results(served, ended) | results(served, ended_one)
    for name in (*bad, "odd"):
        assert rows[name]["response"]["status_code"] == 429
        assert "too large" in rows[name]["response"]["body"]["error"]["message"]
    assert_bounded(servers, rogue, *bad, "odd")


@played(AIOHTTP_KILLED)
def test_an_outage_of_a_while_loses_no_line(servers: Servers, rogue: Rogue):
    rogue.always = lambda name: (0.02, *well(name))
    served = servers.start(upstream__concurrency=16)
    begun = served.batch(lines(names("line", 200)))
    served.until(begun, lambda batch: batch["request_counts"]["completed"] > 0)
    rogue.always = status("500 Internal Server Error")
    rogue.plays("b", status("503 Service Unavailable"))
    two = served.batch(lines(names("b", 2), model="b"))
    for model in ("m", "b"):
        served.until_logged(f"model '{model}' of upstream 'default' is held")
    served = servers.middle()
    for model in ("m", "b"):
        served.until_logged(f"model '{model}' of upstream 'default' is held")
    rogue.always = well
    rogue.plays("b", well)
    assert_answered(served, served.until_ended(begun), 200)
    assert_answered(served, served.until_ended(two), 2)
    wait_until(lambda: not served.trouble())
    for life in servers.lives:
        assert len(life.logged("is held")) == 2, life.log_lines
        assert len(life.logged("is held", "model 'm'", "it answers 500")) == 1
        assert len(life.logged("is held", "model 'b'", "it answers 503")) == 1


@only_slow
@played(LEAN)
def test_a_tenth_of_bad_lines_costs_the_good_ones_little(servers: Servers, rogue: Rogue):
    """Measured in calls: while good lines wait, a quarter of those in flight may be of lines that failed."""
    count = 200 if IS_SLOW else 100
    bad, good = names("bad", count), names("good", 9 * count)
    rogue.always = lambda name: (0.02, *well(name))
    for name in bad:
        rogue.plays(name, lambda _: (0.02, *status("500 Internal Server Error")(_)))
    mixed = [name for number in range(count) for name in (*good[number * 9 : number * 9 + 9], bad[number])]
    served = servers.start(upstream__max_attempts=5, upstream__concurrency=16)
    batch_id = served.batch(lines(mixed))
    wait_until(lambda: len(rogue.calls) > 3 * count)
    served = servers.middle()
    ended = served.until_ended(batch_id, timeout_s=120)
    rows = results(served, ended)
    assert ended["request_counts"] == {"total": 10 * count, "completed": 9 * count, "failed": count}
    assert all(rows[name]["response"]["status_code"] == 500 for name in bad)
    last_good = max(at for at, name in enumerate(rogue.calls) if name.startswith("good"))
    before, after = Counter(rogue.calls[:last_good]), set(rogue.calls[last_good:])
    retries = sum(before[name] - 1 for name in bad if before[name])
    others = sum(before[name] for name in good) + sum(before[name] > 0 for name in bad)
    assert retries <= others / 3 + 16
    assert len(after & set(bad)) > count / 2, "the bad lines ended before the good ones"
    assert max(rogue.asked[name] for name in bad) <= len(servers.lives) * 10
    if not servers.is_killed:
        assert {rogue.asked[name] for name in good} == {1}


@only_slow
@played(AIOHTTP)
def test_a_retry_after_of_zero_is_no_endless_loop(servers: Servers, rogue: Rogue):
    rogue.always = status("429 Too Many Requests", "Retry-After: 0")
    served = servers.start()
    batch_id = served.batch(lines(["line"]))
    wait_until(lambda: rogue.asked.total() > 1)
    served = servers.middle()
    begin = time.monotonic()

    def moments() -> list[float]:
        return [moment for times in rogue.asked_at.values() for moment in times if moment >= begin]

    wait_until(lambda: max(moments(), default=begin) - begin > 3)
    assert len([moment for moment in moments() if moment - begin <= 3]) <= 31
    rogue.always = well
    assert_answered(served, served.until_ended(batch_id), 1)


@played(LEAN_KILLED)
def test_a_pause_that_one_model_needs_is_no_pause_of_another(servers: Servers, rogue: Rogue):
    rogue.plays("a", status("429 Too Many Requests", "Retry-After: 45"))
    served = servers.start()
    waiting = served.batch(lines(names("waits", 10), model="a"))
    wait_until(lambda: rogue.asked.total() > 0)
    first = served.batch(lines(names("first", 10), model="b"))
    assert_answered(served, served.until_ended(first, timeout_s=20), 10)
    served = servers.middle()
    assert served.see(waiting)["request_counts"] == {"total": 10, "completed": 0, "failed": 0}
    assert served.send("POST", f"/v1/batches/{waiting}/cancel")[0] == 200
    second = served.batch(lines(names("second", 10), model="b"))
    assert_answered(served, served.until_ended(second, timeout_s=20), 10)
    assert served.until_ended(waiting, timeout_s=20)["status"] == "cancelled"


@only_slow
@played(AIOHTTP_KILLED)
def test_what_the_operator_has_to_mend_holds_every_line_and_is_said_once(servers: Servers, rogue: Rogue):
    no_credit = b'{"error": {"message": "no", "code": "insufficient_quota"}}'
    reasons = {
        "a": "it refuses our key (401); check upstream.api_key",
        "b": "the account has no credit left (429 insufficient_quota)",
    }
    rogue.plays("a", status("401 Unauthorized"))
    rogue.plays("b", status("429 Too Many Requests", body=no_credit))
    served = servers.start(upstream__max_attempts=1)
    batches = [served.batch(lines(names(model, 50), model=model)) for model in reasons]
    for reason in reasons.values():
        assert "ERROR" in served.until_logged(reason)
    served = servers.middle()
    for model, reason in reasons.items():
        assert f"model '{model}' of upstream 'default' is held since" in served.until_said(reason)
    asked = rogue.asked.total()
    wait_until(lambda: rogue.asked.total() > asked + 3)
    for batch_id in batches:
        assert served.see(batch_id)["request_counts"] == {"total": 50, "completed": 0, "failed": 0}
    assert asked <= len(servers.lives) * 150, "only probes are sent"
    for model in reasons:
        rogue.plays(model, well)
    for batch_id in batches:
        assert_answered(served, served.until_ended(batch_id), 50)
    wait_until(lambda: not served.trouble())
    for life in servers.lives:
        assert len(life.logged("is held")) == 2, life.log_lines
        for model, reason in reasons.items():
            assert len(life.logged("is held", f"model '{model}'", reason)) == 1
    assert len(served.logged("is no longer held")) == 2


@played(AIOHTTP)
def test_a_200_without_a_result_is_no_answer(servers: Servers, rogue: Rogue):
    rogue.always = lambda name: (0.01, *well(name))
    rogue.plays("an error", status("200 OK", body=b'{"error": {"message": "no", "code": 500}}'))
    rogue.plays("a list", status("200 OK", body=b"[1, 2, 3]"))
    good = names("good", 100)
    served = servers.start(upstream__concurrency=2)
    batch_id = served.batch(lines([*good[:10], "an error", "a list", *good[10:]]))
    wait_until(lambda: rogue.asked["an error"] > 0)
    served = servers.middle()
    ended = served.until_ended(batch_id)
    rows = results(served, ended)
    assert ended["request_counts"] == {"total": 102, "completed": 100, "failed": 2}
    for name in ("an error", "a list"):
        assert rows[name]["error"] is not None or rows[name]["response"]["status_code"] >= 400
        assert rogue.asked[name] >= TRIES
    assert_bounded(servers, rogue, "an error", "a list")


@only_slow
@played(LEAN)
def test_time_outs_in_the_queue_of_the_server_cost_no_line(servers: Servers, rogue: Rogue):
    rogue.one_at_a_time = asyncio.Lock()
    rogue.always = lambda name: (0.1, answer(said(name)))
    served = servers.start(upstream__timeout_s=1)
    batch_id = served.batch(lines(names("line", 64)))
    served.until(batch_id, lambda batch: batch["request_counts"]["completed"] > 8)
    served = servers.middle()
    assert_answered(served, served.until_ended(batch_id, timeout_s=90), 64)


@only_slow
@played(AIOHTTP)
def test_a_retry_after_is_obeyed_at_any_status(servers: Servers, rogue: Rogue):
    served = servers.start()
    for model in ("500", "502", "503", "529"):
        rogue.plays(model, status(f"{model} No", "Retry-After: 3"), times=1 + servers.is_killed)
        served.batch(lines([model], model=model))
    wait_until(lambda: len(rogue.asked) == 4)
    served = servers.middle()
    wait_until(lambda: rogue.asked.total() == 4 * (2 + servers.is_killed))
    for moments in rogue.asked_at.values():
        assert 3 <= moments[-1] - moments[-2] < 10

    until = int(time.time()) + 4  # the header has whole seconds
    rogue.plays("dated", status("503 No", f"Retry-After: {formatdate(until, usegmt=True)}"), times=1)
    assert_answered(served, served.until_ended(served.batch(lines(["dated"], model="dated"))), 1)
    sent_ago_s = time.monotonic() - rogue.asked_at["dated"][-1]
    assert time.time() - sent_ago_s >= until


@only_slow
@played(LEAN)
def test_what_no_retry_can_change_is_settled_at_once(servers: Servers, rogue: Rogue):
    """A request that the server does not know how to answer, and answers that are too long to keep."""
    long = names("long", 10)
    for name in long:
        rogue.plays(name, lambda it: (answer(said(it + 4_000 * "x")),))
    rogue.plays("unknown", status("501 Not Implemented"))
    served = servers.start(upstream__max_answer_bytes=1_024)
    batch_id = served.batch(lines(["unknown", *long, *names("good", 10)]))
    wait_until(lambda: len(rogue.asked) == 21)
    served = servers.middle()
    ended = served.until_ended(batch_id)
    rows = results(served, ended)
    assert ended["request_counts"] == {"total": 21, "completed": 10, "failed": 11}
    assert {rows[name]["error"]["code"] for name in long} == {"answer_too_long"}
    assert rows["unknown"]["response"]["status_code"] == 501
    assert max(rogue.asked[name] for name in ("unknown", *long)) <= len(servers.lives)
    assert HI not in rogue.asked


@only_slow
@played(LEAN_KILLED)
def test_a_server_that_dies_and_comes_back_is_said_once_each(servers: Servers, rogue: Rogue):
    rogue.always = lambda name: (0.02, *well(name))
    served = servers.start(upstream__concurrency=8)
    batch_id = served.batch(lines(names("line", 300)))
    wait_until(lambda: rogue.asked.total() > 50)
    with rogue.down():
        served.until_logged("is held")
        served = servers.middle()
        said_at = time.monotonic()
        trouble = served.until_said("held since")
        wait_until(lambda: time.monotonic() - said_at > 4)  # several pauses and further probes
        assert "connection" in trouble.lower() or "refused" in trouble.lower()
    assert_answered(served, served.until_ended(batch_id), 300)
    wait_until(lambda: not served.trouble())
    for life in servers.lives:
        assert len(life.logged("is held")) == 1, life.log_lines
    assert len(served.logged("is no longer held")) == 1
    assert rogue.asked.total() <= 300 + 8 * (1 + len(servers.lives)) + 200 * servers.is_killed
