"""The leased segments of a worker with lines that were never sent, and those that are set aside.

The order is that of `core.schedule`; the dispatcher takes the lines. A segment is set aside while its lines
can't be sent, because too many lines of their model or upstream wait already.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from nightmill.core.schedule import FairQueue, OpenBatch
from nightmill.ids import BatchId
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.model_lines import ModelLines
from nightmill.roles.upstream_lines import UpstreamLines

_MOST_ASIDE: Final = 64
"""Segments that may be set aside before no further segment is leased."""

Blocker: TypeAlias = ModelLines | UpstreamLines
"""What keeps a segment aside until it is no longer full."""


class UnsentSegments:
    """Segments with unsent lines.

    Args:
        on_batch_sent: called when the last leased line of a batch was taken.

    Attributes:
        current: the segment whose turn it is.
        turn_ends_at: its unsent lines at the end of the turn.
    """

    __slots__ = (
        "_aside",
        "_on_batch_sent",
        "_others_unsent",
        "_queue",
        "_turn_began_at",
        "current",
        "turn_ends_at",
    )

    def __init__(self, project_weights: Mapping[str, float], *, on_batch_sent: Callable[[], None]) -> None:
        self._queue: FairQueue[LeasedSegment] = FairQueue(project_weights)
        self._on_batch_sent = on_batch_sent
        self._aside: list[tuple[LeasedSegment, Blocker]] = []
        self._others_unsent = 0
        self._turn_began_at = 0
        self.current: LeasedSegment | None = None
        self.turn_ends_at = 0

    @property
    def unsent(self) -> int:
        """Lines of the segments that are not set aside."""
        return self._others_unsent + (0 if self.current is None else self.current.unsent)

    @property
    def batches(self) -> list[OpenBatch]:
        """The batches with unsent lines that are not set aside."""
        return self._queue.batches

    @property
    def are_aside(self) -> bool:
        return bool(self._aside)

    @property
    def is_crowded(self) -> bool:
        return len(self._aside) >= _MOST_ASIDE

    @property
    def batches_aside(self) -> set[BatchId]:
        return {segment.batch_id for segment, _ in self._aside}

    def add(self, segment: LeasedSegment) -> None:
        self._end_turn()
        if segment.unsent:
            self._queue.add(segment)
            self._others_unsent += segment.unsent

    def next(self, now: float) -> LeasedSegment | None:
        """Ends the turn; returns the segment of the next one, None if there is none.

        Args:
            now: Unix seconds.
        """
        self._end_turn()
        while (turn := self._queue.next(now)) is not None:
            segment, lines = turn
            if _may_send(segment):
                self.current = segment
                self._turn_began_at = segment.unsent
                self.turn_ends_at = segment.unsent - lines
                self._others_unsent -= segment.unsent
                return segment
            self._queue.remove(segment)
        self._others_unsent = 0
        return None

    def set_aside(self, segment: LeasedSegment, blocker: Blocker) -> None:
        """Keeps the current segment aside until `blocker` is no longer full."""
        self._end_turn()
        if _may_send(segment):
            self._queue.remove(segment)
            self._others_unsent -= segment.unsent
        self._aside.append((segment, blocker))

    def take_up_again(self) -> None:
        """Adds the segments again that are no longer blocked."""
        kept = [(segment, blocker) for segment, blocker in self._aside if blocker.is_full]
        if len(kept) < len(self._aside):
            for segment, blocker in self._aside:
                if not blocker.is_full:
                    self.add(segment)
            self._aside = kept

    def drop_stopped(self) -> None:
        """Drops segments that were stopped or lost."""
        self._end_turn()
        self._queue.keep(_may_send)
        self._aside = [(segment, blocker) for segment, blocker in self._aside if _may_send(segment)]
        self._others_unsent = sum(segment.unsent for segment in self._queue)

    def _end_turn(self) -> None:
        segment = self.current
        if segment is None:
            return
        self.current = None
        self._queue.charge(segment, self._turn_began_at - max(segment.unsent, self.turn_ends_at))
        if _may_send(segment):
            self._others_unsent += segment.unsent
        elif self._queue.remove(segment) and not segment.is_lost:
            self._on_batch_sent()


def _may_send(segment: LeasedSegment) -> bool:
    return bool(segment.unsent) and not segment.is_lost
