"""What the headers of an answer say about the upstream's own rate limits. No I/O.

Read are OpenAI's headers, Anthropic's, those of the IETF draft, and the common ones without a unit, which
count requests. A header that can't be read counts as absent.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from nightmill.core.outcome import Remaining

_REQUESTS = (
    (b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests", b"x-ratelimit-limit-requests"),
    (
        b"anthropic-ratelimit-requests-remaining",
        b"anthropic-ratelimit-requests-reset",
        b"anthropic-ratelimit-requests-limit",
    ),
    (b"ratelimit-remaining", b"ratelimit-reset"),
    (b"x-ratelimit-remaining", b"x-ratelimit-reset"),
)
_TOKENS = (
    (b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens", b"x-ratelimit-limit-tokens"),
    (
        b"anthropic-ratelimit-tokens-remaining",
        b"anthropic-ratelimit-tokens-reset",
        b"anthropic-ratelimit-tokens-limit",
    ),
)
# The limit is read only where the reset is the time until the whole limit is available again. The other
# resets end a window of fixed length.

RATE_HEADERS = frozenset(name for names in (*_REQUESTS, *_TOKENS) for name in names)
"""Lower-case names of the headers that `remaining_of` reads."""

_AMOUNT = re.compile(rb"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_DURATION = re.compile(r"(?:[0-9]{1,15}(?:\.[0-9]{1,15})?(?:ms|us|µs|ns|[dhms]))+")
_PART = re.compile(r"([0-9.]+)([a-zµ]+)")
_UNITS_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LONGEST_HEADER = 64
_FIRST_UNIX_S = 1e8
_FIRST_UNIX_MS = 1e11


def remaining_of(headers: Mapping[bytes, bytes], *, now: float) -> Remaining | None:
    """What remains according to the headers; None if they name no amount that can be read.

    Args:
        headers: by lower-case name.
        now: wall-clock time, for a reset that is a date.
    """
    requests, requests_reset_s, requests_limit = _read(headers, _REQUESTS, now)
    tokens, tokens_reset_s, tokens_limit = _read(headers, _TOKENS, now)
    if requests is None and tokens is None:
        return None
    return Remaining(requests, tokens, requests_reset_s, tokens_reset_s, requests_limit, tokens_limit)


def _read(
    headers: Mapping[bytes, bytes], all_names: tuple[tuple[bytes, ...], ...], now: float
) -> tuple[int | None, float | None, int | None]:
    """The amount, the reset in seconds and the limit, by the first names whose amount can be read."""
    for amount_name, reset_name, *limit_names in all_names:
        amount = headers.get(amount_name)
        if amount is not None and _AMOUNT.fullmatch(amount):
            reset = headers.get(reset_name)
            limit = headers.get(limit_names[0]) if limit_names else None
            return (
                int(amount),
                None if reset is None else reset_s(reset.decode("latin-1"), now=now),
                int(limit) if limit is not None and _AMOUNT.fullmatch(limit) else None,
            )
    return None, None, None


def reset_s(value: str, *, now: float) -> float | None:
    """Seconds until a reset; never negative, None when the value can't be read.

    The value is a duration such as `6m0s` or `120ms`, a number of seconds, a Unix time in seconds or
    milliseconds, or a date of RFC 3339.
    """
    value = value.strip()
    if len(value) > _LONGEST_HEADER:
        return None
    if _NUMBER.fullmatch(value):
        return _from_number(float(value), now)
    if _DURATION.fullmatch(value):
        return sum(float(amount) * _UNITS_S[unit] for amount, unit in _PART.findall(value))
    try:
        moment = datetime.fromisoformat(value)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _from_number(seconds: float, now: float) -> float:
    """A large number is a moment, not a duration."""
    if seconds >= _FIRST_UNIX_MS:
        return max(0.0, seconds / 1_000 - now)
    return max(0.0, seconds - now) if seconds >= _FIRST_UNIX_S else seconds
