"""Which requests may be repeated: what was in flight at a blow, and what was not durable yet.

An answer is durable once its part is put: after the interval in which answers are gathered, the put before
its own, and its own. So what a crew asked in the last moments before a blow may be asked again by whoever
takes over, and nothing else may. While the bucket is away or slow nothing becomes durable, so a worker that
dies then, or while the puts are made up for, may have asked in vain since that began.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nightmill.torture.upstream import Ask

MAKE_UP_S: Final = 7.0
"""A put that was refused is repeated after 5 s at most; then come those that have piled up."""
SLACK_S: Final = 0.5
"""On a busy machine an answer reaches its worker so much later."""


@dataclass(frozen=True, slots=True)
class _Span:
    sender: str
    since: float
    until: float


@dataclass(slots=True)
class Bound:
    """Times are monotonic, senders are crews."""

    _blows: list[_Span] = field(default_factory=list)
    _stalls: list[_Span] = field(default_factory=list)

    def stalled(self, sender: str, since: float, until: float) -> None:
        """What the crew answered between the two became durable later, if at all."""
        self._stalls.append(_Span(sender, since, until))

    def struck(self, sender: str, since: float, until: float) -> None:
        """Between the two its work, or a part of it, may have been given to others."""
        self._blows.append(_Span(sender, since, until))

    def repeatable(self, asks: Sequence[Ask], *, durable_after_s: Callable[[Ask], float]) -> set[int]:
        """Places of the asks that may be repeated, or be repeats by one who woke too late to know.

        Args:
            asks: all of them, in order.
            durable_after_s: from the request to the durable answer.
        """
        spans = [_Span(blow.sender, min(self._since(blow)), blow.until + SLACK_S) for blow in self._blows]
        return {
            place
            for place, ask in enumerate(asks)
            if any(
                span.sender == ask.sender
                and span.since - durable_after_s(ask) - SLACK_S <= ask.moment <= span.until
                for span in spans
            )
        }

    def _since(self, blow: _Span) -> Iterator[float]:
        yield blow.since
        for stall in self._stalls:
            is_near = stall.since <= blow.until and stall.until + MAKE_UP_S >= blow.since
            if stall.sender == blow.sender and is_near:
                yield stall.since


def unexplained(asks: Sequence[Ask], repeatable: set[int]) -> Iterator[Ask]:
    """Repeats of which neither the request before nor the repeat itself is among the repeatable."""
    latest: dict[str, int] = {}
    for place, ask in enumerate(asks):
        before = latest.get(ask.marker)
        if before is not None and before not in repeatable and place not in repeatable:
            yield ask
        latest[ask.marker] = place
