"""GET at any path of the host, beside or above the base path."""

import gzip

import pytest

from nightmill.core.outcome import Answered, TimedOut, TooLong, Unreachable

LIMIT_BYTES = 1_000


@pytest.fixture
def get():
    def send(upstream, path="/metrics", *, timeout_s=60.0):
        return upstream.get(path, timeout_s=timeout_s, max_answer_bytes=LIMIT_BYTES)

    return send


async def test_the_path_is_that_of_the_host_and_the_headers_are_those_of_every_request(rogue, connect, get):
    upstream = connect(rogue.url + "?api-version=1", api_key="sk-secret", headers={"X-Team": "night"})
    assert await get(upstream) == Answered(200, b'{"ok":true}')
    [seen] = rogue.requests
    assert seen.line == "GET /metrics HTTP/1.1"
    assert seen.body == b""
    assert seen.headers["host"] == f"127.0.0.1:{rogue.port}"
    assert seen.headers["authorization"] == "Bearer sk-secret"
    assert seen.headers["x-team"] == "night"


@pytest.mark.parametrize("status", [307, 401, 404, 500])
async def test_every_status_is_an_answer_and_a_redirect_is_not_followed(rogue, connect, get, words, status):
    rogue.plays(words.answer(b"no", status=b"%d No" % status, headers=[b"Location: /elsewhere"]))
    assert await get(connect(rogue.url)) == Answered(status, b"no")
    assert len(rogue.requests) == 1


async def test_the_limit_of_a_get_is_its_own(rogue, connect, get, ask, words):
    long = words.answer(b"x" * (LIMIT_BYTES + 1))
    rogue.plays(words.answer(b"x" * LIMIT_BYTES))
    rogue.plays(long)
    rogue.plays(long)
    upstream = connect(rogue.url)
    assert await get(upstream) == Answered(200, b"x" * LIMIT_BYTES)
    assert await get(upstream) == TooLong(LIMIT_BYTES)
    assert await ask(upstream) == Answered(200, b"x" * (LIMIT_BYTES + 1))


async def test_the_limit_holds_for_compressed_bodies(rogue, connect, get, words):
    packed = gzip.compress(b"x" * 100_000, mtime=0)
    rogue.plays(words.answer(packed, headers=[b"Content-Encoding: gzip"]))
    assert await get(connect(rogue.url)) == TooLong(LIMIT_BYTES)


async def test_a_get_without_an_answer_ends(rogue, connect, get, words):
    rogue.plays(words.HANG)
    assert await get(connect(rogue.url), timeout_s=0.2) == TimedOut(0.2)


async def test_a_get_without_a_connection_ends(connect, get):
    assert isinstance(await get(connect("http://127.0.0.1:1/v1")), Unreachable)
