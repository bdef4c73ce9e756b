"""The headers with which an upstream reports what remains of its rate limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.outcome import Answered, Remaining
from nightmill.upstream.rate_headers import RATE_HEADERS, remaining_of, reset_s

NOW = 1_795_957_200.0  # 2026-11-29T13:00:00Z


@pytest.mark.parametrize("status", [200, 429])
async def test_remaining_requests_and_tokens_of_openai(rogue, connect, ask, words, status):
    headers = [
        b"X-RateLimit-Remaining-Requests: 59",
        b"x-ratelimit-remaining-tokens: 149984",
        b"x-ratelimit-reset-requests: 1s",
        b"x-ratelimit-reset-tokens: 6m0s",
        b"x-ratelimit-limit-requests: 60",
        b"X-RateLimit-Limit-Tokens: 150000",
        b"x-request-id: r-1",
    ]
    rogue.plays(words.answer(b"{}", status=b"%d Said" % status, headers=headers))
    upstream = connect(rogue.url)
    remaining = Remaining(59, 149_984, 1.0, 360.0, 60, 150_000)
    assert await ask(upstream) == Answered(status, b"{}", "r-1", remaining=remaining)
    assert await ask(upstream) == Answered(200, b'{"ok":true}')  # nothing is left over from the answer before


async def test_rate_headers_among_trailers_are_not_read(rogue, connect, ask):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    rogue.plays(head + b"2\r\n{}\r\n0\r\nx-ratelimit-remaining-requests: 0\r\n\r\n")
    assert await ask(connect(rogue.url)) == Answered(200, b"{}")


@pytest.mark.parametrize(
    ("headers", "remaining"),
    [
        ({b"x-ratelimit-remaining-tokens": b"7"}, Remaining(tokens=7)),
        ({b"ratelimit-remaining": b"3", b"ratelimit-reset": b"12"}, Remaining(3, requests_reset_s=12.0)),
        ({b"x-ratelimit-remaining": b"0", b"x-ratelimit-reset": b"30"}, Remaining(0, requests_reset_s=30.0)),
        (
            {
                b"anthropic-ratelimit-requests-remaining": b"4",
                b"anthropic-ratelimit-requests-reset": b"2026-11-29T13:00:20Z",
                b"anthropic-ratelimit-tokens-remaining": b"9000",
                b"anthropic-ratelimit-tokens-reset": b"2026-11-29T12:59:00Z",
            },
            Remaining(4, 9_000, 20.0, 0.0),
        ),
        # The reset of these is the end of a window, so the limit says nothing about a rate.
        ({b"ratelimit-remaining": b"3", b"ratelimit-limit": b"9"}, Remaining(3)),
        (
            {b"anthropic-ratelimit-tokens-remaining": b"5", b"anthropic-ratelimit-tokens-limit": b"80000"},
            Remaining(tokens=5, tokens_limit=80_000),
        ),
        # A reset belongs to the amount of the same family.
        ({b"x-ratelimit-remaining-requests": b"5", b"ratelimit-reset": b"12"}, Remaining(5)),
        ({b"x-ratelimit-remaining-requests": b"many", b"ratelimit-remaining": b"2"}, Remaining(2)),
        ({b"x-ratelimit-remaining-requests": b"-1"}, None),
        ({b"x-ratelimit-remaining-requests": b"9" * 99}, None),
        ({b"x-ratelimit-reset-requests": b"1s"}, None),
        ({}, None),
    ],
)
def test_the_families_of_headers(headers, remaining):
    assert remaining_of(headers, now=NOW) == remaining


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h0m0s", 3_600.0),
        ("2m59.56s", 179.56),
        ("1d2h", 93_600.0),
        ("500us", 0.0005),
        ("0", 0.0),
        (" 7.5 ", 7.5),
        (f"{NOW + 30:.0f}", 30.0),
        (f"{(NOW + 30) * 1_000:.0f}", 30.0),
        ("1000000000", 0.0),
        ("2026-11-29T13:01:00+00:00", 60.0),
        ("2026-11-29T13:01:00", 60.0),
        ("0001-01-01T00:00:00", 0.0),
        ("soon", None),
        ("", None),
        ("1x", None),
        ("nan", None),
        ("-3", None),
        ("1.2.3s", None),
        ("1s" * 40, None),
    ],
)
def test_the_forms_of_a_reset(value, seconds):
    assert reset_s(value, now=NOW) == (None if seconds is None else pytest.approx(seconds))


@given(headers=st.dictionaries(st.sampled_from(sorted(RATE_HEADERS)), st.binary(max_size=80)))
def test_no_value_of_a_header_is_an_error(headers):
    remaining = remaining_of(headers, now=NOW)
    if remaining is not None:
        assert all(value is None or value >= 0 for value in (remaining.requests, remaining.tokens))
        resets = (remaining.requests_reset_s, remaining.tokens_reset_s)
        assert all(seconds is None or seconds >= 0 for seconds in resets)
