"""What follows for one line after an attempt: outcome -> verdict. No I/O.

    answered ─ 2xx, 3xx, 4xx ───────────────────────────▶ settle
             ├ 408, 409, 425, 5xx ──────▶ retry, counts ┐
    broken, timed out ──────────────────▶ retry, counts ├▶ settle after the last attempt
    throttled, unreachable, refused ────▶ retry, does not count
    any retry that would start past the deadline ───────▶ expire

`now` and randomness (a number in [0, 1)) are arguments. Before a line is judged, the outcome passes through
`CircuitBreaker.judge` (see `circuit_breaker`).
"""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from nightmill.core.outcome import Answered, Broken, Outcome, Refused, Throttled, TimedOut, Unreachable

BACKOFF_BASE_S = 0.5

BACKOFF_CAP_S = 60.0

RETRY_AFTER_CAP_S = 600.0
"""The longest Retry-After that is obeyed; a longer value is cut to this."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Write the output line from this outcome."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the line again after `after_s` seconds. The attempt counts as `burns` attempts."""

    after_s: float
    burns: float


@dataclass(frozen=True, slots=True)
class Expire:
    """No further attempt fits before the deadline: give the line up; it expires with its batch."""


Verdict: TypeAlias = Settle | Retry | Expire

_SETTLE = Settle()

_EXPIRE = Expire()


def verdict(
    outcome: Outcome | Refused,
    *,
    attempts: float,
    max_attempts: int,
    now: float,
    deadline: float,
    random: float,
) -> Verdict:
    """What follows for one line.

    Args:
        outcome: of the latest attempt, as the breaker judges it.
        attempts: the number of that attempt, counted from 1, without attempts that counted as none.
        max_attempts: attempts that may count.
        now: Unix seconds.
        deadline: of the batch, in Unix seconds.
        random: a number in [0, 1).
    """
    match outcome:
        case Answered(status):
            if not is_worth_another(status):
                return _SETTLE
            burns, after_s = 1, backoff_s(attempts, random=random)
        case Broken(counts_as=counts_as) | TimedOut(counts_as=counts_as):
            burns, after_s = counts_as, backoff_s(attempts, random=random)
        case Throttled(retry_after_s=asked_s) if asked_s is not None:
            # With jitter, so that lines with the same Retry-After are not all sent in one instant.
            burns, after_s = 0, bounded(asked_s) * (1 + random / 10)
        case Throttled() | Unreachable() | Refused():
            burns, after_s = 0, backoff_s(attempts, random=random)
        case _:
            assert_never(outcome)
    if burns and attempts - 1 + burns >= max_attempts:
        return _SETTLE
    if now + after_s >= deadline:
        return _EXPIRE
    return Retry(after_s, burns)


def is_worth_another(status: int) -> bool:
    """Whether another attempt may have another outcome."""
    return status >= 500 or status in _WORTH_ANOTHER


_WORTH_ANOTHER = frozenset({408, 409, 425})


def backoff_s(attempts: float, *, random: float) -> float:
    """The pause in seconds after so many attempts: exponential backoff with full jitter."""
    return random * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempts - 1, 16))


def bounded(asked_s: float) -> float:
    """A pause that an upstream asked for, in seconds, between 0 and `RETRY_AFTER_CAP_S`."""
    return min(max(asked_s, 0.0), RETRY_AFTER_CAP_S)
