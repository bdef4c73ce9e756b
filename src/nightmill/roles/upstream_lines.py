"""The lines of one upstream in one worker: in flight, arrived, and waiting to be sent again.

Every line that `start` or `wait` was given is in exactly one of the three until the dispatcher takes the line
out. What an outcome means for a line belongs to `core.retry`, when a line is sent to `dispatcher`.
"""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

import msgspec

from nightmill.core.outcome import Outcome
from nightmill.core.request_line import RequestLine
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.upstream import Attempts, attempts_of
from nightmill.upstream.registry import UpstreamRuntime


class PendingLine(msgspec.Struct, eq=False, gc=False):
    """A line that was taken from its segment and is not settled.

    `attempts` is the sum of earlier attempts that counted against the line. `charged_tokens` is the estimate
    that the rate limit was charged for the attempt in flight.
    """

    segment: LeasedSegment
    ordinal: int
    request: RequestLine
    attempts: float = 0
    charged_tokens: float = 0.0

    def charge(self, tokens: float) -> None:
        """Records what the rate limit was charged for the attempt that starts."""
        self.charged_tokens = tokens

    def count_attempt(self, counts_as: float) -> None:
        """Counts the latest attempt; 0 for an attempt that is not the line's fault."""
        self.attempts += counts_as


class UpstreamLines:
    """The lines in flight at one upstream, and those that wait to be sent again.

    Args:
        runtime: the upstream.
        on_arrival: called when the first outcome arrives after a call of `take_arrived`.

    Attributes:
        retries: a heap of the lines that wait to be sent again: monotonic time, a tie breaker, the line.
        Others
            only read it.
    """

    __slots__ = (
        "_arrived",
        "_attempts",
        "_in_flight",
        "_on_arrival",
        "_sequence",
        "_start",
        "retries",
        "runtime",
    )

    def __init__(self, runtime: UpstreamRuntime, *, on_arrival: Callable[[], None]) -> None:
        self.runtime = runtime
        self._on_arrival = on_arrival
        self._in_flight: set[PendingLine] = set()
        self._arrived: list[tuple[PendingLine, Outcome]] = []
        self.retries: list[tuple[float, int, PendingLine]] = []
        self._sequence = count()
        self._attempts: Attempts  # from `open` on

    def open(self, group: asyncio.TaskGroup) -> None:
        """Must be called before the first `start`. A client that needs a task per attempt runs it there."""
        self._attempts = attempts_of(self.runtime.client, group=group)
        self._start = self._attempts.start

    def close(self) -> None:
        """Ends every attempt in flight."""
        for line in self._in_flight:
            self._attempts.give_up(line)
        self._in_flight.clear()

    @property
    def in_flight(self) -> int:
        """Attempts in flight, those included whose outcome has arrived and was not taken yet."""
        return len(self._in_flight)

    @property
    def is_crowded(self) -> bool:
        """Whether more lines wait than the upstream takes at once; then no new line is taken."""
        return len(self.retries) > self.runtime.slots.concurrency_limit

    @property
    def next_retry_at(self) -> float | None:
        """Monotonic time at which the first waiting line may be sent again."""
        return self.retries[0][0] if self.retries else None

    def start(self, line: PendingLine, *, timeout_s: float) -> None:
        """Sends a line."""
        self._in_flight.add(line)
        self._start(
            line,
            line.segment.lease.endpoint,
            line.request.body,
            timeout_s=timeout_s,
            on_outcome=self._on_outcome,
        )

    def _on_outcome(self, line: PendingLine, outcome: Outcome) -> None:
        if not self._arrived:
            self._on_arrival()
        self._arrived.append((line, outcome))

    def take_arrived(self) -> list[tuple[PendingLine, Outcome]]:
        """The lines whose outcomes have arrived, with their outcomes; none of them is in flight any more."""
        arrived = self._arrived
        if arrived:
            self._arrived = []
            self._in_flight.difference_update([line for line, _ in arrived])
        return arrived

    def wait(self, line: PendingLine, *, until: float) -> None:
        """Keeps a line that may be sent at monotonic time `until`."""
        heapq.heappush(self.retries, (until, next(self._sequence), line))

    def is_due(self, now: float) -> bool:
        """Whether the pause of the first waiting line is over. There must be a waiting line."""
        return self.retries[0][0] <= now

    def next_retry(self, now: float) -> PendingLine | None:
        """Takes out the first waiting line; None while its segment's lease is not confirmed."""
        if self.retries[0][2].segment.confirmed_until < now:
            return None
        return heapq.heappop(self.retries)[2]

    def forget_retries(self, segment: LeasedSegment) -> int:
        """Drops the waiting lines of a segment; returns how many."""
        kept = [entry for entry in self.retries if entry[2].segment is not segment]
        dropped = len(self.retries) - len(kept)
        if dropped:
            heapq.heapify(kept)
            self.retries = kept
        return dropped

    def abort(self, segment: LeasedSegment) -> int:
        """Ends the attempts in flight of a segment; returns how many."""
        lines = [line for line in self._in_flight if line.segment is segment]
        for line in lines:
            self._in_flight.remove(line)
            self._attempts.give_up(line)
        return len(lines)
