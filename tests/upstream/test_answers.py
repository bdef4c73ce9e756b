"""What comes back whole: statuses, framings, encodings, headers."""

import gzip
import time
import zlib
from email.utils import formatdate

import pytest

from nightmill.core.outcome import Answered, Broken


async def test_a_request_goes_out_byte_for_byte_with_our_headers(rogue, connect, ask):
    upstream = connect(rogue.url, api_key="sk-secret", headers={"X-Team": "night"})
    body = b'{"model":"m", "seed":9007199254740993, "t":1.0}'
    assert await ask(upstream, body) == Answered(200, b'{"ok":true}', None)
    [seen] = rogue.requests
    assert seen.line == "POST /v1/chat/completions HTTP/1.1"
    assert seen.body == body
    assert seen.headers["host"] == f"127.0.0.1:{rogue.port}"
    assert seen.headers["authorization"] == "Bearer sk-secret"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["content-length"] == str(len(body))
    assert seen.headers["x-team"] == "night"
    assert "accept-encoding" not in seen.headers
    assert "cookie" not in seen.headers


async def test_the_endpoint_goes_below_the_base_path(rogue, connect, ask):
    upstream = connect(rogue.url.replace("/v1", "/team/a/v1beta/?api-version=1"))
    await ask(upstream, endpoint="/v1/embeddings")
    await upstream.models()
    lines = [seen.line for seen in rogue.requests]
    assert lines == [
        "POST /team/a/v1beta/embeddings?api-version=1 HTTP/1.1",
        "GET /team/a/v1beta/models?api-version=1 HTTP/1.1",
    ]


async def test_a_connection_is_used_again(rogue, connect, ask):
    upstream = connect(rogue.url)
    for _ in range(5):
        await ask(upstream)
    assert rogue.connections == 1


@pytest.mark.parametrize("status", [200, 201, 400, 401, 404, 413, 422, 429, 500, 502, 503, 504, 529])
async def test_every_final_status_is_an_answer(rogue, connect, ask, words, status):
    rogue.plays(words.answer(b'{"error":{}}', status=b"%d Whatever" % status))
    assert await ask(connect(rogue.url)) == Answered(status, b'{"error":{}}', None)


async def test_html_from_a_proxy_is_an_answer_for_the_worker_to_judge(rogue, connect, ask, words):
    rogue.plays(words.answer(b"<html>Bad Gateway</html>", status=b"502 Bad Gateway"))
    assert await ask(connect(rogue.url)) == Answered(502, b"<html>Bad Gateway</html>", None)


async def test_invalid_json_is_an_answer_for_the_worker_to_judge(rogue, connect, ask, words):
    rogue.plays(words.answer(b'{"choices":['))
    assert await ask(connect(rogue.url)) == Answered(200, b'{"choices":[', None)


@pytest.mark.parametrize("status", [200, 429, 500, 503, 529])
async def test_retry_after_in_seconds(rogue, connect, ask, words, status):
    rogue.plays(words.answer(b"{}", status=b"%d Slow Down" % status, headers=[b"RETRY-AFTER:  7 "]))
    assert await ask(connect(rogue.url)) == Answered(status, b"{}", retry_after_s=7.0)


async def test_retry_after_as_a_date(rogue, connect, ask, words):
    date = formatdate(time.time() + 90, usegmt=True).encode()
    rogue.plays(words.answer(b"{}", status=b"503 Slow Down", headers=[b"Retry-After: " + date]))
    outcome = await ask(connect(rogue.url))
    assert isinstance(outcome, Answered)
    assert 60 < outcome.retry_after_s <= 90


async def test_an_unreadable_retry_after_counts_as_none(rogue, connect, ask, words):
    for status in (b"429 Slow Down", b"503 Slow Down"):
        rogue.plays(words.answer(b"{}", status=status, headers=[b"Retry-After: soon"]))
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(429, b"{}")
    assert await ask(upstream) == Answered(503, b"{}")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"req-1/a", "req-1/a"),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, None),
        (b"\xc3\xa9", None),
        (b"a b", None),
        (b"", None),
    ],
)
async def test_a_short_printable_request_id_is_passed_on(rogue, connect, ask, words, sent, kept):
    rogue.plays(words.answer(headers=[b"X-Request-Id: " + sent]))
    assert await ask(connect(rogue.url)) == Answered(200, b'{"ok":true}', kept)


async def test_chunks_are_joined(rogue, connect, ask):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    rogue.plays(head + b'6\r\n{"ok":\r\n', b"5;x=y\r\ntrue}\r\n", b"0\r\n\r\n")
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    assert rogue.connections == 1


async def test_trailers_are_not_headers(rogue, connect, ask):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Request-Id\r\n\r\n"
    rogue.plays(head + b"2\r\n{}\r\n0\r\nX-Request-Id: late\r\nContent-Encoding: gzip\r\n\r\n")
    assert await ask(connect(rogue.url)) == Answered(200, b"{}", None)


async def test_a_body_may_end_with_its_connection(rogue, connect, ask, words):
    rogue.plays(b"HTTP/1.1 200 OK\r\n\r\n", b'{"ok":', b"true}", words.CLOSE)
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    assert rogue.connections == 2


async def test_http_1_0_is_understood(rogue, connect, ask, words):
    rogue.plays(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", words.CLOSE)
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(200, b"{}", None)
    await ask(upstream)
    assert [seen.connection for seen in rogue.requests] == [0, 1]


async def test_connection_close_is_obeyed(rogue, connect, ask, words):
    rogue.plays(words.answer(headers=[b"Connection: close"]))
    upstream = connect(rogue.url)
    await ask(upstream)
    await ask(upstream)
    assert [seen.connection for seen in rogue.requests] == [0, 1]


async def test_interim_answers_are_skipped(rogue, connect, ask, words):
    early = b"HTTP/1.1 103 Early Hints\r\nX-Request-Id: early\r\nLink: </style.css>\r\n\r\n"
    rogue.plays(b"HTTP/1.1 100 Continue\r\n\r\n", early + words.answer(), b"")
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)
    await ask(upstream)
    assert rogue.connections == 1


async def test_an_answer_without_a_body(rogue, connect, ask):
    rogue.plays(b"HTTP/1.1 204 No Content\r\n\r\n")
    upstream = connect(rogue.url)
    assert await ask(upstream) == Answered(204, b"", None)
    assert await ask(upstream) == Answered(200, b'{"ok":true}', None)


async def test_a_body_in_many_small_reads_is_whole(rogue, connect, ask):
    body = bytes(range(32, 127)) * 20
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    rogue.plays(*[bytes([byte]) for byte in head + body])
    assert await ask(connect(rogue.url)) == Answered(200, body, None)


async def test_large_bodies_both_ways(rogue, connect, ask, words):
    body = b'{"x":"' + b"y" * 3_000_000 + b'"}'
    rogue.plays(words.answer(body))
    assert await ask(connect(rogue.url), body) == Answered(200, body, None)
    assert rogue.requests[0].body == body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_the_key_goes_nowhere_else(rogue, connect, ask, words, status):
    elsewhere = words.Rogue()
    await elsewhere.start()
    try:
        location = b"Location: " + elsewhere.url.encode()
        rogue.plays(words.answer(b"", status=b"%d Moved" % status, headers=[location]))
        outcome = await ask(connect(rogue.url, api_key="sk-secret"))
    finally:
        await elsewhere.stop()
    assert outcome == Answered(status, b"", None)
    assert (len(rogue.requests), elsewhere.connections) == (1, 0)


async def test_cookies_are_not_kept(rogue, connect, ask, words):
    rogue.plays(words.answer(headers=[b"Set-Cookie: a=b"]))
    upstream = connect(rogue.url)
    await ask(upstream)
    await ask(upstream)
    assert "cookie" not in rogue.requests[1].headers


@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [
        (b"gzip", gzip.compress(b'{"ok":true}', mtime=0)),
        (b"deflate", zlib.compress(b'{"ok":true}')),
        (b"identity", b'{"ok":true}'),
    ],
)
async def test_compression_that_was_not_requested_is_undone(rogue, connect, ask, words, encoding, encoded):
    rogue.plays(words.answer(encoded, headers=[b"Content-Encoding: " + encoding]))
    assert await ask(connect(rogue.url)) == Answered(200, b'{"ok":true}', None)


@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [
        (b"br", b"whatever"),
        (b"gzip", b"not gzip at all"),
        (b"gzip", gzip.compress(b'{"ok":true}', mtime=0)[:-9]),
    ],
)
async def test_compression_that_can_not_be_undone_is_broken(rogue, connect, ask, words, encoding, encoded):
    rogue.plays(words.answer(encoded, headers=[b"Content-Encoding: " + encoding]))
    assert isinstance(await ask(connect(rogue.url)), Broken)


async def test_models_are_the_upstreams_own_words(rogue, connect, words):
    rogue.plays(words.answer(b'{"data":[ ]}'))
    assert await connect(rogue.url, api_key="sk-secret").models() == b'{"data":[ ]}'
    assert rogue.requests[0].line == "GET /v1/models HTTP/1.1"
    assert rogue.requests[0].headers["authorization"] == "Bearer sk-secret"


async def test_no_models_where_none_are_told(rogue, connect, words):
    rogue.plays(words.answer(b"{}", status=b"404 Not Found"))
    assert await connect(rogue.url).models() is None
    assert await connect("http://127.0.0.1:1/v1").models() is None
