"""What an attempt brought, and what to do about it: outcome -> verdict, backoff against the deadline.

Pure: no I/O, `now` and randomness are arguments. Outcomes are values; a line that fails is not an exception.
"""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Answered:
    """The upstream sent a whole HTTP answer. `body` is exactly what it sent (decoded from chunks only)."""

    status: int
    body: bytes
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """429, or 503 with Retry-After: the upstream asks for patience. The line is not to blame."""

    status: int
    body: bytes
    retry_after_s: float | None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer and the line was surely not read: refused, DNS, TLS, closed before a byte was sent back on a
    fresh connection. `reason` is ours, short, and holds nothing the upstream sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection or the answer broke after the line may have been read: reset, truncated, not HTTP."""

    reason: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No whole answer within the attempt's time."""

    timeout_s: float


Outcome: TypeAlias = Answered | Throttled | Unreachable | Broken | TimedOut
