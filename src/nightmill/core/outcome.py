"""What one attempt brought, as a value. A line that fails is not an exception. No I/O."""

from typing import ClassVar, TypeAlias, assert_never

import msgspec


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The upstream sent a whole HTTP answer. `body` is what it sent, freed of chunks and compression.
    Redirects are answers too: nothing follows them."""

    status: int
    body: bytes
    request_id: str | None = None


class Throttled(msgspec.Struct, frozen=True, gc=False):
    """429, or 503 with Retry-After: the upstream asks for patience. The line is not to blame."""

    status: int
    body: bytes
    retry_after_s: float | None
    request_id: str | None = None


class Unreachable(msgspec.Struct, frozen=True, gc=False):
    """No connection, so the line was surely not read: refused, DNS, TLS, no connection in time. `reason` is
    ours, short, and holds nothing the upstream sent."""

    reason: str


class Broken(msgspec.Struct, frozen=True, gc=False):
    """The connection or the answer broke after the line may have been read: reset, truncated, not HTTP."""

    code: ClassVar[str] = "upstream_broken"
    reason: str
    counts_as: float = 1.0
    """How many attempts of the line this is; see `sent_again`."""

    @property
    def message(self) -> str:
        """What the caller reads in the error file."""
        return f"The model server gave no usable answer: {self.reason}."


class TimedOut(msgspec.Struct, frozen=True, gc=False):
    """No whole answer within the attempt's time."""

    code: ClassVar[str] = "request_timeout"
    timeout_s: float
    counts_as: float = 1.0
    """As in `Broken`."""

    @property
    def message(self) -> str:
        """What the caller reads in the error file."""
        return f"The model server gave no whole answer within {self.timeout_s:g} seconds."


class Refused(msgspec.Struct, frozen=True, gc=False):
    """401, 403, 407 or a redirect while the upstream accepts nothing: the operator's fault, not the line's.
    Only `CircuitBreaker.judge` makes one."""

    status: int


Outcome: TypeAlias = Answered | Throttled | Unreachable | Broken | TimedOut
"""What `Upstream.send` returns."""

NOT_JSON = Broken("the answer is not JSON")
"""For the worker, in place of a 2xx whose body does not parse."""


def sent_again(outcome: Outcome, *, first: Broken) -> Outcome:
    """What a line comes to that broke on a reused connection (`first`) and was sent again at once.

    An answer clears it. Else the break counts as half an attempt: more likely the server had only closed an
    idle connection, or died of another line. But one that kills the upstream each time must come to an end.
    """
    match outcome:
        case Broken() | TimedOut():
            return msgspec.structs.replace(outcome, counts_as=1.5)
        case Unreachable():
            return msgspec.structs.replace(first, counts_as=0.5)
        case Answered() | Throttled():
            return outcome
        case _:
            assert_never(outcome)


def is_success(outcome: Outcome) -> bool:
    """Nearly every outcome is one. It settles its line, whatever else holds."""
    return isinstance(outcome, Answered) and 200 <= outcome.status < 300
