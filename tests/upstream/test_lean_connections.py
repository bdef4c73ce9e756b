"""What only the lean transport guarantees: its connections, its ramp, its single timer."""

import asyncio
import gc
import ssl
import warnings

import pytest

from nightmill.core.outcome import Answered, Unreachable
from nightmill.settings import UpstreamSettings
from nightmill.upstream import http1
from nightmill.upstream.connection import Connection
from nightmill.upstream.http1 import LeanUpstream, reason_of
from nightmill.upstream.target import target_of

OK = Answered(200, b'{"ok":true}', None)


@pytest.fixture
async def lean():
    opened = []

    def open_to(url, **arguments):
        target = target_of(url, UpstreamSettings())
        arguments = {"connect_timeout_s": 5.0, "max_answer_bytes": 1 << 20, **arguments}
        opened.append(LeanUpstream(target, tls=None, **arguments))
        return opened[-1]

    yield open_to
    for upstream in opened:
        await upstream.close()


async def test_the_most_recently_used_connection_is_taken_first(rogue, lean, ask, words):
    upstream = lean(rogue.url)
    for pause_s in (0.15, 0.05, 0.1):
        rogue.plays(words.Pause(pause_s), words.answer())
    await asyncio.gather(*(ask(upstream) for _ in range(3)))
    last = rogue.requests[0]  # its answer took longest
    await ask(upstream)
    await ask(upstream)
    assert [seen.connection for seen in rogue.requests[3:]] == [last.connection] * 2


async def test_the_first_byte_of_each_answer_is_timed_once_and_lists_of_models_are_not(
    rogue, lean, ask, words
):
    upstream, times = lean(rogue.url), []
    upstream.time_first_bytes(times.append)
    rogue.plays(words.answer()[:20], words.Pause(0.01), words.answer()[20:])
    assert await ask(upstream) == OK
    await upstream.models()
    assert len(times) == 1


async def test_of_many_attempts_at_once_one_is_timed_to_its_first_byte(rogue, lean, ask):
    upstream, times = lean(rogue.url), []
    upstream.time_first_bytes(times.append)
    for _ in range(2):
        await asyncio.gather(*(ask(upstream) for _ in range(20)))
        await asyncio.sleep(0.02)
    assert 2 <= len(times) < 20


async def test_an_idle_connection_is_closed_by_us_first(rogue, lean, ask):
    upstream = lean(rogue.url, idle_s=0.1)
    await ask(upstream)
    await rogue.until_no_connection_is_left()
    assert await ask(upstream) == OK
    assert rogue.connections == 2


async def test_an_idle_connection_past_its_time_is_not_used_even_before_the_sweep(rogue, lean, ask):
    upstream = lean(rogue.url, idle_s=0.0)
    await ask(upstream)
    await asyncio.sleep(0.005)
    await ask(upstream)
    assert rogue.connections == 2


async def test_connections_are_opened_a_few_at_a_time(rogue, lean, ask, monkeypatch):
    opening, most = 0, 0
    upstream = lean(rogue.url)
    connect = upstream._connect

    async def counted(*arguments):
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        try:
            return await connect(*arguments)
        finally:
            opening -= 1

    monkeypatch.setattr(upstream, "_connect", counted)
    assert await asyncio.gather(*(ask(upstream) for _ in range(300))) == [OK] * 300
    assert most == http1.OPENING_AT_ONCE


async def test_those_who_wait_to_connect_learn_from_those_who_failed(lean, ask, monkeypatch):
    upstream, tries = lean("http://127.0.0.1:9/v1"), 0

    async def away(_loop):
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.02)
        return Unreachable("connection refused")

    monkeypatch.setattr(upstream, "_connect", away)
    outcomes = await asyncio.gather(*(ask(upstream) for _ in range(500)))
    assert outcomes == [Unreachable("connection refused")] * 500
    assert tries == http1.OPENING_AT_ONCE
    await ask(upstream)
    assert tries == http1.OPENING_AT_ONCE + 1


async def test_waiting_to_connect_ends_with_the_attempts_time(lean, ask, monkeypatch):
    upstream = lean("http://127.0.0.1:9/v1")

    async def never(_loop):
        await asyncio.Event().wait()

    monkeypatch.setattr(upstream, "_connect", never)
    outcomes = await asyncio.gather(*(ask(upstream, timeout_s=0.1) for _ in range(80)))
    assert outcomes == [Unreachable("no connection within the attempt's time")] * 80


async def test_an_attempt_needs_no_timer_and_no_task_of_its_own(rogue, lean, ask, words):
    upstream = lean(rogue.url)
    await ask(upstream)
    loop = asyncio.get_running_loop()
    counted = []
    call_at, create_task = loop.call_at, loop.create_task
    if type(loop).__module__.startswith("uvloop"):
        pytest.skip("uvloop's methods can't be replaced")
    loop.call_at = lambda *a, **k: counted.append(a) or call_at(*a, **k)
    loop.create_task = lambda *a, **k: counted.append(a) or create_task(*a, **k)
    for _ in range(20):
        await ask(upstream)
    del loop.call_at, loop.create_task
    assert len(counted) <= 2  # the sweep, at most


async def test_an_attempt_that_is_given_up_is_never_told_and_closes_only_its_own_connection(
    rogue, lean, words
):
    upstream, on_outcome = lean(rogue.url), asyncio.Queue()

    def start(tag):
        upstream.start(
            tag,
            "/v1/chat/completions",
            b"{}",
            timeout_s=5.0,
            on_outcome=lambda *outcome: on_outcome.put_nowait(outcome),
        )

    start("earlier")
    assert await on_outcome.get() == ("earlier", OK)
    rogue.plays(words.Pause(0.05), words.answer())
    start("later")
    upstream.give_up("earlier")  # its connection has moved on
    assert await on_outcome.get() == ("later", OK)
    rogue.plays(words.HANG)
    start("unwanted")
    await rogue.until_requests(3)
    upstream.give_up("unwanted")
    await rogue.until_no_connection_is_left()
    start("unwanted before it has a connection")
    upstream.give_up("unwanted before it has a connection")
    start("last")
    assert await on_outcome.get() == ("last", OK)
    assert on_outcome.empty()
    assert len(rogue.requests) == 4


async def test_a_closed_upstream_leaves_no_timer_and_no_connection(rogue, lean, ask):
    upstream = lean(rogue.url)
    await asyncio.gather(*(ask(upstream) for _ in range(10)))
    await upstream.close()
    assert upstream._sweeping is None
    assert not upstream._connections
    del upstream
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert not any(isinstance(thing, Connection) and thing.is_open for thing in gc.get_objects())


def test_reasons_are_in_our_words():
    assert reason_of(ConnectionRefusedError(111, "whatever")) == "connection refused"
    assert reason_of(OSError(24, "Too many open files")) == "no connection: Too many open files"
    assert reason_of(OSError("Multiple exceptions: sk-secret")) == "no connection: OSError"
    assert reason_of(ssl.SSLError(1, "[SSL: WRONG] text")).startswith("no TLS connection")
