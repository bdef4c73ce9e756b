"""The order between batches: which segment is sent next. No I/O.

Where the order is decided:

    store: batches in progress ──BATCH_ORDER──▶ segments of a batch by number ──lease──▶ worker
    worker: leased segments ───SegmentQueue──▶ dispatcher ──▶ lines in the order of the index

- The store offers candidates. Its lease query sorts the batches that have waiting segments by `BATCH_ORDER`
  and leases the waiting segments of the first batch by number, then those of the next batch. The query is
  bounded and indexed: the cost of a lease does not grow with the number of open batches.
- A worker leases a little more than its concurrency limit can use (see `Dispatcher.wanted_lines`), and sends
  its leased segments in the order of `SegmentQueue`. Lines of one segment are sent in the order of the index.
- Lines that wait to be sent again go before new lines once their pause is over.

Today the oldest batch is first, and a worker sends what it leased first. A worker that has leased segments of
one batch is therefore done with those before a segment of a later batch is sent; other workers, and lines
beyond the leased ones, follow the order at the next lease.

Failure handling: the order is only a preference. A lease that expires returns its segment to the waiting ones
of its batch, at its old place. No guarantee of answers or fences depends on the order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

BATCH_ORDER: Final = ("sequence",)
"""Columns of a batch by which the store sorts candidates for sending, ascending. `sequence` is the order of
creation."""

STEP_ORDER: Final = ("sequence",)
"""As `BATCH_ORDER`, for the batches that intake and finalizer lease. Their index is by `sequence`."""

Leased = TypeVar("Leased")


class SegmentQueue(Generic[Leased]):
    """The leased segments of one worker with lines to send; the segment leased first is sent first."""

    __slots__ = ("_segments",)

    def __init__(self) -> None:
        self._segments: deque[Leased] = deque()

    def __iter__(self) -> Iterator[Leased]:
        return iter(self._segments)

    def add(self, segment: Leased) -> None:
        self._segments.append(segment)

    def next(self) -> Leased | None:
        """Takes out the segment to send next; None if there is none."""
        return self._segments.popleft() if self._segments else None

    def keep(self, is_kept: Callable[[Leased], bool]) -> None:
        """Drops every segment for which `is_kept` is false."""
        self._segments = deque(segment for segment in self._segments if is_kept(segment))
