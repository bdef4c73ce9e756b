"""The outcome that a whole HTTP answer stands for, the same for both transports. No I/O."""

import math
import re
import zlib
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from nightmill.core.outcome import Answered, Broken, Outcome, TooLong
from nightmill.upstream.rate_headers import RATE_HEADERS, remaining_of

KEPT_HEADERS = frozenset({b"retry-after", b"x-request-id", b"content-encoding"}) | RATE_HEADERS
"""Lower-case names of the headers `outcome_of` reads."""

GONE = Broken("the connection was closed before an answer came")
_UNREADABLE = Broken("the answer is in a content encoding that was not requested and can't be read")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_OK = 200
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def outcome_of(
    status: int, body: bytes, *, headers: Mapping[bytes, bytes], max_bytes: int, now: float
) -> Outcome:
    """The outcome of a whole answer.

    Args:
        status: of the final answer, never 1xx.
        body: without chunk framing, still in its content encoding.
        headers: those of `KEPT_HEADERS` that the answer has.
        max_bytes: the longest decoded body.
        now: wall-clock time, for a header that names a date.
    """
    encoding = headers.get(b"content-encoding")
    if encoding is not None and body:
        decoded = _decoded(body, encoding.strip().lower(), max_bytes=max_bytes)
        if not isinstance(decoded, bytes):
            return decoded
        body = decoded
    request_id = headers.get(b"x-request-id")
    if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
        request_id = None
    request_id_text = None if request_id is None else request_id.decode("ascii")
    asked = headers.get(b"retry-after")
    asked_s = None if asked is None else retry_after_s(asked.decode("latin-1"), now=now)
    remaining = None if RATE_HEADERS.isdisjoint(headers) else remaining_of(headers, now=now)
    return Answered(status, body, request_id_text, asked_s, remaining)


def body_of_ok(outcome: Outcome) -> bytes | None:
    """The body of an answer with status 200; None for any other outcome."""
    return outcome.body if isinstance(outcome, Answered) and outcome.status == _OK else None


def retry_after_s(value: str, *, now: float) -> float | None:
    """Seconds from a Retry-After header, a number or an HTTP date; None when neither. Never negative."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _decoded(body: bytes, encoding: bytes, *, max_bytes: int) -> bytes | Broken | TooLong:
    """The decoded body. Requests accept no encoding, but some proxies compress nevertheless."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        return _UNREADABLE
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        decoded = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        return _UNREADABLE
    if len(decoded) > max_bytes:
        return TooLong(max_bytes)
    return decoded if stream.eof else _UNREADABLE
