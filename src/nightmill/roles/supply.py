"""How many lines a worker should lease ahead, and of what.

A worker needs lines for every upstream with free slots. Lines that wait for other upstreams, or for a held
model, do not help it. So the demand is counted for each upstream and its slots, and batches with more lines
than their upstreams need are passed over when further segments are leased.
"""

from collections.abc import Callable, Iterator
from typing import Final

from nightmill.core.schedule import OpenBatch
from nightmill.ids import BatchId
from nightmill.roles.line_queues import LineQueue, LineQueues
from nightmill.roles.slot_group import SlotGroup
from nightmill.roles.upstream_lines import UpstreamLines
from nightmill.roles.upstream_set import UpstreamSet

_AHEAD_S: Final = 0.1
_MOST_SPARE: Final = 16
"""Segments of models with lines enough, before no further segment is leased."""


class Supply:
    """The lines of a worker that were never sent, against what its upstreams could send."""

    def __init__(self, queues: LineQueues, upstreams: UpstreamSet, *, monotonic: Callable[[], float]) -> None:
        self._queues = queues
        self._upstreams = upstreams
        self._monotonic = monotonic
        self._feeds: dict[UpstreamLines, list[tuple[LineQueue, SlotGroup]]] = {}
        self._feeds_version = -1

    @property
    def unsent(self) -> int:
        """Lines that were never sent and may be sent now, apart from free slots."""
        return self._queues.unsent(self._monotonic())

    @property
    def batches(self) -> list[OpenBatch]:
        """The batches with such lines."""
        return self._queues.batches(self._monotonic())

    @property
    def is_crowded(self) -> bool:
        """Whether so many segments wait for held models that no further one is leased."""
        return self._queues.is_crowded(self._monotonic())

    @property
    def batches_aside(self) -> set[BatchId]:
        """Batches of which no further segment is leased: their lines can't be sent now, or are
        many."""
        aside = {segment.batch_id for segment in self._queues.held_segments(self._monotonic())}
        aside.update(segment.batch_id for segment in self._queues.limited_segments)
        for queue in self._saturated():
            aside.update(batch.id for batch in queue.segments.batches)
        return aside

    @property
    def lacking_lines(self) -> int:
        """How many more lines the worker should lease."""
        now = self._monotonic()
        return sum(
            max(0, wanted - supplied)
            for upstream in self._upstreams
            for wanted, supplied in self._demands(upstream, now)
        )

    @property
    def is_plentiful(self) -> bool:
        """Whether so many lines wait for busy upstreams that only lines for other models help."""
        return sum(1 for queue in self._saturated() for _ in queue.segments) >= _MOST_SPARE

    def is_short(self, now: float) -> bool:
        """Whether an upstream will soon have no line to send."""
        for upstream in self._upstreams:
            for wanted, supplied in self._demands(upstream, now):
                if 2 * supplied <= wanted:
                    return True
        return False

    def wanted_slots(self, upstream: UpstreamLines, group: SlotGroup) -> int:
        """How many slots of an upstream the known lines could use."""
        wanted = group.in_flight
        if upstream.runtime.may_start:
            wanted += upstream.waiting(group) + self._queues.mixed_unsent
            wanted += sum(queue.unsent for queue, fed in self.feeds_of(upstream) if fed is group)
        return wanted

    @property
    def are_several(self) -> bool:
        """Whether there are several queues or upstreams: one may have lines enough, another none."""
        return self._upstreams.are_several or len(list(self._queues)) > 1

    def needs(self, model: str | None) -> bool:
        """Whether an upstream has free slots for a model, and no line of it waits.

        Args:
            model: None for lines whose models are not known.
        """
        if model is None:
            return self.lacking_lines > 0
        if self._queues.has_new(model):
            return False
        now = self._monotonic()
        return any(
            upstream.runtime.offer.answers(model)
            and not upstream.is_held(model, now)
            and _has_room(upstream.group_of(model), now)
            for upstream in self._upstreams
        )

    def feeds_of(self, upstream: UpstreamLines) -> list[tuple[LineQueue, SlotGroup]]:
        """The queues from which an upstream takes lines, each with the slots for its lines."""
        if self._feeds_version != self._queues.version:
            self._feeds = {lines: [] for lines in self._upstreams}
            for queue in self._queues:
                for lines in queue.upstreams:
                    self._feeds[lines].append((queue, lines.group_of(queue.model)))
            self._feeds_version = self._queues.version
        return self._feeds.get(upstream, [])

    def _demands(self, upstream: UpstreamLines, now: float) -> Iterator[tuple[int, int]]:
        """For the slots of an upstream that get lines: how many lines should be leased ahead, and are."""
        if not upstream.runtime.may_start:
            return
        supplies: dict[SlotGroup, int] = {}
        for queue, group in self.feeds_of(upstream):
            supplies[group] = supplies.get(group, 0) + (0 if queue.is_held(now) else queue.unsent)
        if not supplies:
            supplies[upstream.group_of(None)] = 0
        for group, supplied in supplies.items():
            yield group.lines_ahead(now, ahead_s=_AHEAD_S), supplied + self._queues.mixed_unsent

    def _saturated(self) -> list[LineQueue]:
        """The queues with as many lines as their upstreams need, while there are other queues."""
        queues = list(self._queues)
        if len(queues) < 2 and not self._upstreams.are_several:
            return []
        now = self._monotonic()
        return [
            queue
            for queue in queues
            if queue.unsent
            >= sum(
                upstream.group_of(queue.model).lines_ahead(now, ahead_s=_AHEAD_S)
                for upstream in queue.upstreams
            )
        ]


def _has_room(group: SlotGroup, now: float) -> bool:
    """Whether an attempt could start; slots that are not used are granted only when there are lines."""
    return not group.in_flight or group.room(now) > 0
