"""What follows for one line after a failed attempt. No I/O.

    the request can't be answered ─────────────────────────▶ settle
    the failure counts, and `max_attempts` are reached ────▶ settle
    the next attempt would start past the deadline ────────▶ expire
    any other failure ─────────────────────────────────────▶ retry, after a pause that grows with what counted

`now` and randomness (a number in [0, 1)) are arguments. Whether a failure counts is decided by `core.health`.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from nightmill.core.failure import Failure, FailureKind, backoff_s, bounded_s
from nightmill.core.health import LineRecord


@dataclass(frozen=True, slots=True)
class Settle:
    """Write the output line from this outcome."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the line again after `after_s` seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Expire:
    """No further attempt fits before the deadline: give the line up; it expires with its batch."""


Verdict: TypeAlias = Settle | Retry | Expire

_MOST_UNCOUNTED: Final = 4
"""Failures that do not count make the pauses grow too, but only to some seconds: a line goes on soon after an
outage."""

_SETTLE = Settle()

_EXPIRE = Expire()


def verdict(
    failure: Failure,
    record: LineRecord,
    *,
    max_attempts: int,
    now: float,
    deadline: float,
    random: float,
) -> Verdict:
    """What follows for one line.

    Args:
        failure: the latest attempt.
        record: the failures of the line, the latest included.
        max_attempts: attempts of a line that fails while other lines are answered.
        now: Unix seconds.
        deadline: of the batch, in Unix seconds.
        random: a number in [0, 1).
    """
    if failure.kind is FailureKind.REQUEST:
        return _SETTLE
    if record.is_explained and record.counted >= max_attempts - 1:
        return _SETTLE
    after_s = backoff_s(max(record.counted, min(record.failures - 1, _MOST_UNCOUNTED)), random=random)
    if failure.retry_after_s is not None:
        # With jitter, so that lines with the same Retry-After are not all sent in one instant.
        after_s = max(after_s, bounded_s(failure.retry_after_s) * (1 + random / 10))
    return _EXPIRE if now + after_s >= deadline else Retry(after_s)
