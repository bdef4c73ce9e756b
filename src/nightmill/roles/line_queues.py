"""The lines of one worker that were never sent, in a queue for each model and endpoint.

Every upstream that serves a queue's model takes lines from the queue when it has a free slot, so upstreams
share the lines by their speed, and a model that can't be sent holds up no other. A segment whose lines name
one model is in the queue of that model. Segments whose lines name several models are sorted line by line, a
bounded number ahead. Within a queue the order is that of `core.schedule`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Final

from nightmill.core.schedule import FairQueue, OpenBatch
from nightmill.roles.leased_segment import LeasedSegment
from nightmill.roles.model_lines import PendingLine
from nightmill.roles.slot_group import NO_GROUP, SlotGroup

if TYPE_CHECKING:
    from nightmill.roles.upstream_lines import UpstreamLines

_FEWEST_SORTED: Final = 64
_MOST_SORTED: Final = 500
_MOST_ASIDE: Final = 64
"""Segments that may wait for held models before no further segment is leased."""


class SegmentQueue:
    """Segments with unsent lines, and whose turn it is.

    Args:
        on_batch_sent: called when the last leased line of a batch was taken.

    Attributes:
        limited: segments of batches with as many lines at work as they may have. They hold up no others.
    """

    __slots__ = (
        "_current",
        "_on_batch_sent",
        "_others_unsent",
        "_queue",
        "_turn_began_at",
        "_turn_ends_at",
        "limited",
    )

    def __init__(self, project_weights: Mapping[str, float], *, on_batch_sent: Callable[[], None]) -> None:
        self._queue: FairQueue[LeasedSegment] = FairQueue(project_weights)
        self._on_batch_sent = on_batch_sent
        self.limited: list[LeasedSegment] = []
        self._others_unsent = 0
        self._current: LeasedSegment | None = None
        self._turn_began_at = 0
        self._turn_ends_at = 0

    def __iter__(self) -> Iterator[LeasedSegment]:
        return iter(self._queue)

    @property
    def unsent(self) -> int:
        return self._others_unsent + (0 if self._current is None else self._current.unsent)

    @property
    def turn_lines(self) -> int:
        """Lines that may be taken before the turn ends; only after `next_segment` returned a segment."""
        return 0 if self._current is None else self._current.unsent - self._turn_ends_at

    @property
    def batches(self) -> list[OpenBatch]:
        return self._queue.batches

    def add(self, segment: LeasedSegment) -> None:
        self.end_turn()
        if segment.unsent:
            self._queue.add(segment)
            self._others_unsent += segment.unsent

    def next_segment(self, now: float, clock: Callable[[], float]) -> LeasedSegment | None:
        """The segment of which the next line is sent; None without one.

        Args:
            now: monotonic time. A segment whose lease is not confirmed until then has no turn.
            clock: Unix seconds.
        """
        segment = self._current
        if segment is None or segment.unsent <= self._turn_ends_at or segment.is_lost:
            segment = self._next_turn(clock())
            if segment is None:
                return None
        return None if segment.confirmed_until < now else segment

    def _next_turn(self, now: float) -> LeasedSegment | None:
        self.end_turn()
        while (turn := self._queue.next(now)) is not None:
            segment, lines = turn
            if segment.cap is not None:
                lines = min(lines, segment.cap.room)
                if lines <= 0 and _may_send(segment):
                    self._queue.remove(segment)
                    self._others_unsent -= segment.unsent
                    self.limited.append(segment)
                    continue
            if _may_send(segment):
                self._current = segment
                self._turn_began_at = segment.unsent
                self._turn_ends_at = segment.unsent - lines
                self._others_unsent -= segment.unsent
                return segment
            self._queue.remove(segment)
        self._others_unsent = 0
        return None

    def take_out(self, segment: LeasedSegment) -> None:
        """Takes out the segment whose turn it is, with its unsent lines."""
        self.end_turn()
        if _may_send(segment):
            self._queue.remove(segment)
            self._others_unsent -= segment.unsent

    def drop_stopped(self) -> None:
        """Drops segments that were stopped or lost."""
        self.end_turn()
        self._queue.keep(_may_send)
        self.limited = [segment for segment in self.limited if _may_send(segment)]
        self._others_unsent = sum(segment.unsent for segment in self._queue)

    def update_batches(self) -> None:
        """Takes over changed priorities and deadlines of the segments' batches."""
        self.end_turn()
        self._queue.update_batches()

    def admit_limited(self) -> None:
        """Takes back the segments whose batches may have further lines at work."""
        if not self.limited:
            return
        kept: list[LeasedSegment] = []
        for segment in self.limited:
            if segment.cap is not None and segment.cap.room <= 0 and _may_send(segment):
                kept.append(segment)
            else:
                self.add(segment)
        self.limited = kept

    def end_turn(self) -> None:
        segment = self._current
        if segment is None:
            return
        self._current = None
        self._queue.charge(segment, self._turn_began_at - max(segment.unsent, self._turn_ends_at))
        if _may_send(segment):
            self._others_unsent += segment.unsent
        elif self._queue.remove(segment) and not segment.is_lost:
            self._on_batch_sent()


class LineQueue:
    """The lines of one model and endpoint.

    Args:
        model: the model that the lines name, None for lines that name none.

    Attributes:
        segments: segments of which every line is for the model.
        sorted_lines: lines of segments with several models, and lines that an upstream gave back.
        upstreams: those that serve the model.
    """

    __slots__ = ("_unserved_since", "endpoint", "model", "segments", "sorted_lines", "upstreams")

    def __init__(self, model: str | None, endpoint: str, segments: SegmentQueue) -> None:
        self.model = model
        self.endpoint = endpoint
        self.segments = segments
        self.sorted_lines: deque[PendingLine] = deque()
        self.upstreams: tuple[UpstreamLines, ...] = ()
        self._unserved_since: float | None = None

    @property
    def unsent(self) -> int:
        """Lines that wait."""
        return self.segments.unsent + len(self.sorted_lines)

    @property
    def has_lines(self) -> bool:
        """Whether lines wait, or will when others of their batches are answered."""
        return bool(self.unsent or self.segments.limited)

    def route_to(self, upstreams: tuple["UpstreamLines", ...]) -> None:
        """Records which upstreams serve the model."""
        self.upstreams = upstreams

    def unserved_s(self, now: float, *, is_unserved: bool) -> float:
        """Seconds since which no upstream serves the model; 0 while one does, or may."""
        if not is_unserved:
            self._unserved_since = None
            return 0.0
        if self._unserved_since is None:
            self._unserved_since = now
        return now - self._unserved_since

    def is_held(self, now: float) -> bool:
        """Whether no upstream takes a line of the model now, whatever its slots."""
        return all(upstream.is_held(self.model, now) for upstream in self.upstreams)

    def is_full(self, now: float) -> bool:
        """Whether no further line is sorted into the queue for now."""
        if any(
            self.model in upstream.models for upstream in self.upstreams
        ):  # further lines of the same segments may be for other models
            return len(self.sorted_lines) >= _MOST_SORTED
        slots = sum(upstream.group_of(self.model).slots.limit(now) for upstream in self.upstreams)
        return len(self.sorted_lines) >= max(_FEWEST_SORTED, 2 * slots)

    def is_for(self, upstream: "UpstreamLines", now: float) -> bool:
        """Whether an upstream takes lines now: a reserve takes them only while no other upstream does."""
        return upstream.runtime.weight > 0 or all(
            other.is_held(self.model, now) for other in self.upstreams if other.runtime.weight > 0
        )

    def next_lines(
        self, now: float, clock: Callable[[], float], group: SlotGroup, *, most: int
    ) -> Iterator[PendingLine]:
        """Takes out the next lines to send, each when it is asked for. Nothing else may take out or add lines
        meanwhile.

        Args:
            now: as for `SegmentQueue.next_segment`, and `clock`.
            group: the slots in which the lines are sent.
        """
        while most > 0:
            if self.sorted_lines:
                if self.sorted_lines[0].segment.confirmed_until >= now:
                    most -= 1
                    line = self.sorted_lines.popleft()
                    line.start(now, group)
                    yield line
                    continue
                self.sorted_lines.rotate(-1)
            segment = self.segments.next_segment(now, clock)
            if segment is None:
                return
            lines = 1 if self.sorted_lines else min(most, self.segments.turn_lines)
            most -= lines
            for _ in range(lines):
                ordinal, request = segment.take()
                yield PendingLine(segment, ordinal, request, self.model, now, group)

    def all_lines(self, now: float, clock: Callable[[], float]) -> Iterator[PendingLine]:
        """Takes out all lines to be settled at once, also those of batches with a limit of their own."""
        while True:
            taken = 0
            for line in self.next_lines(now, clock, NO_GROUP, most=self.unsent):
                taken += 1
                yield line
            self.segments.admit_limited()
            if not taken:
                return

    def forget(self, segment: LeasedSegment) -> int:
        """Drops the sorted lines of a segment; returns how many."""
        kept = deque(line for line in self.sorted_lines if line.segment is not segment)
        dropped = len(self.sorted_lines) - len(kept)
        self.sorted_lines = kept
        return dropped


class LineQueues:
    """All queues of a worker.

    Args:
        serving: the upstreams that serve a model at an endpoint.
        on_batch_sent: called when the last leased line of a batch was taken.
    """

    def __init__(
        self,
        project_weights: Mapping[str, float],
        *,
        serving: Callable[[str | None, str], tuple["UpstreamLines", ...]],
        on_batch_sent: Callable[[], None],
    ) -> None:
        self._project_weights = project_weights
        self._serving = serving
        self._on_batch_sent = on_batch_sent
        self._queues: dict[tuple[str | None, str], LineQueue] = {}
        self._of_model: dict[str | None, list[LineQueue]] = {}
        self._mixed: SegmentQueue = self._new_segments()
        self._aside: list[tuple[LeasedSegment, LineQueue]] = []
        self._version = 0

    def __iter__(self) -> Iterator[LineQueue]:
        return iter(self._queues.values())

    @property
    def version(self) -> int:
        """Changes when there is a queue more or less."""
        return self._version

    def unsent(self, now: float) -> int:
        """Lines that may be sent now, apart from free slots."""
        waiting = self._mixed.unsent
        for queue in self._queues.values():
            if not queue.is_held(now):
                waiting += queue.unsent
        return waiting

    @property
    def mixed_unsent(self) -> int:
        """Lines whose model was not looked at yet."""
        return self._mixed.unsent

    def batches(self, now: float) -> list[OpenBatch]:
        """The batches with unsent lines that may be sent now."""
        queues = [queue.segments.batches for queue in self._queues.values() if not queue.is_held(now)]
        return [*self._mixed.batches, *chain.from_iterable(queues)]

    def has_new(self, model: str | None) -> bool:
        """Whether there are lines of a model that were never sent."""
        return any(queue.unsent for queue in self._of_model.get(model, ()))

    def held_segments(self, now: float) -> list[LeasedSegment]:
        """The segments whose lines can't be sent now."""
        held = [queue.segments for queue in self._queues.values() if queue.is_held(now)]
        return [*(segment for segment, _ in self._aside), *chain.from_iterable(held)]

    @property
    def limited_segments(self) -> list[LeasedSegment]:
        """The segments of batches that have as many lines at work as they may have."""
        return list(chain.from_iterable(segments.limited for segments in self._all_segments()))

    def is_crowded(self, now: float) -> bool:
        """Whether so many segments wait for held models that no further one is leased."""
        return len(self.held_segments(now)) >= _MOST_ASIDE

    def add(self, segment: LeasedSegment) -> list[LineQueue]:
        """Adds a segment; returns the queues in which it may have put lines."""
        lease = segment.lease
        if lease.model is None:
            self._mixed.add(segment)
            return list(self._queues.values())
        queue = self.queue_of(lease.model, lease.endpoint)
        queue.segments.add(segment)
        return [queue]

    def queue_of(self, model: str | None, endpoint: str) -> LineQueue:
        """The queue of a model and endpoint."""
        key = model, endpoint
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = LineQueue(model, endpoint, self._new_segments())
            queue.route_to(self._serving(model, endpoint))
            self._of_model.setdefault(model, []).append(queue)
            self._version += 1
        return queue

    def sort_lines(self, now: float, clock: Callable[[], float]) -> None:
        """Puts lines of segments with several models into the queues of their models."""
        if self._aside:
            kept = [(segment, queue) for segment, queue in self._aside if queue.is_full(now)]
            for segment, queue in self._aside if len(kept) < len(self._aside) else ():
                if not queue.is_full(now):
                    self._mixed.add(segment)
            self._aside = kept
        if not self._mixed.unsent:
            return
        while (segment := self._mixed.next_segment(now, clock)) is not None:
            ordinal, request = segment.take()
            queue = self.queue_of(request.model, segment.lease.endpoint)
            queue.sorted_lines.append(PendingLine(segment, ordinal, request, queue.model))
            if queue.is_full(now):
                self._mixed.take_out(segment)
                if _may_send(segment):
                    self._aside.append((segment, queue))

    def reroute(self) -> None:
        """Asks again which upstreams serve each queue."""
        for queue in self._queues.values():
            queue.route_to(self._serving(queue.model, queue.endpoint))
        self._version += 1

    def drop_empty(self, *, is_wanted: Callable[[str | None], bool]) -> None:
        """Drops the queues without lines, except those of models that `is_wanted`."""
        empty = [
            key for key, queue in self._queues.items() if not queue.has_lines and not is_wanted(queue.model)
        ]
        for key in empty:
            queue = self._queues.pop(key)
            of_model = self._of_model[queue.model]
            of_model.remove(queue)
            if not of_model:
                del self._of_model[queue.model]
        if empty:
            self._version += 1

    def forget(self, segment: LeasedSegment) -> int:
        """Drops the sorted lines of a segment; returns how many."""
        return sum(queue.forget(segment) for queue in self._queues.values())

    def drop_stopped(self) -> None:
        """Drops segments that were stopped or lost."""
        for segments in self._all_segments():
            segments.drop_stopped()
        self._aside = [(segment, queue) for segment, queue in self._aside if _may_send(segment)]

    def update_batches(self) -> None:
        """Takes over changed priorities and deadlines of the segments' batches."""
        for segments in self._all_segments():
            segments.update_batches()

    def admit_limited(self) -> None:
        """Takes back the segments whose batches may have further lines at work."""
        for segments in self._all_segments():
            if segments.limited:
                segments.admit_limited()

    def _all_segments(self) -> Iterable[SegmentQueue]:
        return chain([self._mixed], (queue.segments for queue in self._queues.values()))

    def _new_segments(self) -> SegmentQueue:
        return SegmentQueue(self._project_weights, on_batch_sent=self._on_batch_sent)


def _may_send(segment: LeasedSegment) -> bool:
    return bool(segment.unsent) and not segment.is_lost
