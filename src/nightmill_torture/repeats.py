"""Which requests may be repeated: those in flight at a fault, and those whose answer was not durable yet.

An answer is durable once its part is written: after the interval in which answers are gathered, the write
before its own, and its own write. So the process that takes over may repeat what a member sent in the last
moments before a fault, and nothing else. While the bucket is away or slow no answer becomes durable. A worker
that dies then, or before the delayed writes are done, may lose every answer since the bucket stalled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nightmill_torture.record import Request

MAKE_UP_S: Final = 7.0
"""A refused write is repeated after 5 s at most; the writes that have queued up follow."""
SLACK_S: Final = 0.5
"""Delay of an answer on its way to a worker on a busy machine."""


@dataclass(frozen=True, slots=True)
class _Span:
    sender: str
    since: float
    until: float


@dataclass(slots=True)
class RepeatBound:
    """Times are monotonic, senders are names of members."""

    _faults: list[_Span] = field(default_factory=list[_Span])
    _stalls: list[_Span] = field(default_factory=list[_Span])

    def add_stall(self, sender: str, since: float, until: float) -> None:
        """Answers to the sender between the two times became durable later, or not at all."""
        self._stalls.append(_Span(sender, since, until))

    def add_fault(self, sender: str, since: float, until: float) -> None:
        """Between the two times the work of the sender, or a part of it, may have been taken over."""
        self._faults.append(_Span(sender, since, until))

    def repeatable(
        self, requests: Sequence[Request], *, durable_after_s: Callable[[Request], float]
    ) -> set[int]:
        """Places of the requests that may be repeated, or may be repeats by a sender that woke late.

        Args:
            requests: all requests, in order.
            durable_after_s: time from the request to the durable answer.
        """
        spans = [
            _Span(fault.sender, min(self._since(fault)), fault.until + SLACK_S) for fault in self._faults
        ]
        return {
            place
            for place, request in enumerate(requests)
            if any(
                span.sender == request.sender
                and span.since - durable_after_s(request) - SLACK_S <= request.moment <= span.until
                for span in spans
            )
        }

    def _since(self, fault: _Span) -> Iterator[float]:
        yield fault.since
        for stall in self._stalls:
            is_near = stall.since <= fault.until and stall.until + MAKE_UP_S >= fault.since
            if stall.sender == fault.sender and is_near:
                yield stall.since


def unexplained(requests: Sequence[Request], repeatable: set[int]) -> Iterator[Request]:
    """Repeats of which neither the request before nor the repeat itself is repeatable."""
    latest: dict[str, int] = {}
    for place, request in enumerate(requests):
        before = latest.get(request.marker)
        if before is not None and before not in repeatable and place not in repeatable:
            yield request
        latest[request.marker] = place
