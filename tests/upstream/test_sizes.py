"""Large requests and answers, and the longest answer that is read."""

import gzip
import zlib

import pytest

from nightmill.core.outcome import Answered, TooLong

LIMIT_BYTES = 200_000
LARGE_BYTES = 20_000_000


@pytest.fixture
def limited(rogue, connect):
    return connect(rogue.url, max_answer_bytes=LIMIT_BYTES)


async def test_a_request_of_20_mb_and_an_answer_of_70_mb_are_whole(rogue, connect, ask, words):
    request = b'{"picture":"' + b"y" * LARGE_BYTES + b'"}'
    body = b'{"data":[' + b"0.12345," * (70_000_000 // 8) + b"1]}"
    rogue.plays(words.answer(body))
    upstream = connect(rogue.url)
    outcome = await ask(upstream, request, timeout_s=60.0)
    assert isinstance(outcome, Answered)
    assert outcome.body == body
    assert rogue.requests[0].headers["content-length"] == str(len(request))
    assert rogue.requests[0].body == request
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    assert rogue.connections == 1, "the connection is used again"


@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_a_body_over_the_limit_is_not_read_to_its_end(rogue, limited, ask, words, framing):
    part = b"x" * 50_000
    head, wrap, end = {
        "chunks": (b"Transfer-Encoding: chunked\r\n", b"c350\r\n" + part + b"\r\n", words.HANG),
        "close": (b"", part, words.CLOSE),
    }[framing]
    rogue.plays(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", *[wrap] * 100, end)
    assert await ask(limited) == TooLong(LIMIT_BYTES)


@pytest.mark.parametrize("status", [b"200 OK", b"500 Oops"])
@pytest.mark.parametrize("length", [b"200001", b"5000000", b"9" * 15])
async def test_an_announced_length_over_the_limit_ends_the_attempt_before_the_body(
    rogue, limited, ask, words, status, length
):
    rogue.plays(b"HTTP/1.1 %b\r\nContent-Length: %b\r\n\r\n" % (status, length), words.HANG)
    assert await ask(limited) == TooLong(LIMIT_BYTES)
    assert await ask(limited) == Answered(200, b'{"ok":true}', None)
    assert rogue.connections == 2, "the rest of the long answer is not taken for the next one"


@pytest.mark.parametrize("framing", [b"Content-Length: 200000\r\n\r\n%b", b"\r\n%b"])
async def test_a_body_of_exactly_the_limit_is_whole(rogue, limited, ask, words, framing):
    body = b"x" * LIMIT_BYTES
    rogue.plays(b"HTTP/1.1 200 OK\r\n" + framing % body, words.CLOSE)
    assert await ask(limited) == Answered(200, body, None)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
@pytest.mark.parametrize(("size_bytes", "fits"), [(LIMIT_BYTES, True), (LIMIT_BYTES + 1, False)])
async def test_a_compressed_answer_is_limited_by_its_decoded_length(
    rogue, limited, ask, words, encoding, compress, size_bytes, fits
):
    body = b"0" * size_bytes
    rogue.plays(words.answer(compress(body), headers=[b"Content-Encoding: " + encoding]))
    assert await ask(limited) == (Answered(200, body, None) if fits else TooLong(LIMIT_BYTES))


async def test_a_small_answer_that_expands_without_end_is_too_long(rogue, limited, ask, words):
    bomb = gzip.compress(b"0" * 100_000_000)
    assert len(bomb) < LIMIT_BYTES
    rogue.plays(words.answer(bomb, headers=[b"Content-Encoding: gzip"]))
    assert await ask(limited) == TooLong(LIMIT_BYTES)
