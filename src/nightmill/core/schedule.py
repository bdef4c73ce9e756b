"""The order between batches: which batch is leased, and which segment's lines are sent next. No I/O.

Where the order is decided:

    store: batches in progress ──indexed, bounded queries──▶ Candidates
    worker: Candidates, held batches ──preferred_batches──▶ batches to lease a segment of
    worker: leased segments ──FairQueue──▶ dispatcher ──▶ lines of a segment in the order of the index

The model. The work of a line is its bytes plus the expected work of its answer, which `AnswerWork` learns
from the answers so far. The dispatcher sends lines in **turns**: a turn is some lines of one batch, about
`TURN_WORK`. Turns are given by deficit round robin, first over the projects by weight, then over the batches
of the project by priority. A batch or project that is new has its first turn before the next turn of the
others; while an older one waits, two first turns never follow each other. A batch whose deadline is within
`NEAR_DEADLINE_S` leaves the round robin: such batches are sent in the order of their deadlines, and get
`NEAR_DEADLINE_SHARE` of the work while other batches wait, all of it otherwise.

A priority is compared with those of the other batches of the project only. The turns of the highest priority
have the full `TURN_WORK`, and each step below halves it, down to `LEAST_TURN_SHARE`. So no turn is longer
because of a priority, and no batch is without turns.

A round robin is only over what is leased, so a worker looks about once a second, and soon after a
notification, for batches that it holds no unsent line of. The same look reads the priorities of the held
ones. The store offers, for a few projects after those of the last look, the oldest, the smallest, and the
oldest batch of the highest priority, and the batches with the nearest deadlines. Of these,
`preferred_batches` takes

- the oldest batch of a project, if it is older than all that the worker holds of the project,
- any batch while the worker holds fewer than `PARALLEL_BATCHES` of its priority or above of the project,
- a batch at most half as large as every held one of the project: a small batch passes large ones,
- the oldest batch for a model of which an upstream has free slots and the worker no line,
- a batch with a near deadline, if it is nearer than those of all held batches of the project.

So, apart from near deadlines, a worker takes at most `PARALLEL_BATCHES` batches of each priority and one more
of a project, and one more for each time that the size halves. No batch starves: the looks go round the
projects, the oldest batch of a project is held whenever it has waiting segments, each held batch has turns,
and each batch becomes the oldest of its project.

Within a segment, the few lines that are much longer than the others are sent first, so that they are not the
last ones in flight (`in_sending_order`). The others keep the order of the index: neighbours often begin with
the same text, which servers have in a cache. The order of the output does not depend on it.

What is left out: segments of a batch are leased in the order of the index. The length of an answer is known
for a batch or a model on average, never for a line.

Failure handling: the order is only a preference. The deficits are in memory; after a restart all batches are
new. Workers need no agreement: each is fair over what it holds. A preferred batch that another worker leased
first is skipped, and a worker without preferred batches leases the oldest. A lease that expires returns its
segment to the waiting ones of its batch. No guarantee of answers or fences depends on the order.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar

from nightmill.core.round_robin import Member, RoundRobin
from nightmill.core.segment import IndexedLine
from nightmill.ids import BatchId, ProjectId

BATCH_ORDER: Final = ("sequence",)
"""Columns of a batch by which the store sorts batches that no worker prefers, ascending. `sequence` is the
order of creation."""

STEP_ORDER: Final = ("sequence",)
"""As `BATCH_ORDER`, for the batches that intake and finalizer lease. Their index is by `sequence`."""

TURN_WORK: Final = 32 * 1_024
"""Work that a batch of a project with weight 1 may send in a turn; the last line may exceed it."""
NEAR_DEADLINE_S: Final = 900
NEAR_DEADLINE_SHARE: Final = 0.75
PARALLEL_BATCHES: Final = 4
"""Batches of a project that a worker sends at the same time, whatever their size."""
LEAST_TURN_SHARE: Final = 1 / 256
"""Of a batch of low priority, compared with one of the highest priority."""

_LONG_FACTOR: Final = 4
_MOST_LONG: Final = 1 / 8


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch with lines to send.

    Args:
        sequence: grows with each batch that is created.
        deadline: Unix seconds.
        input_bytes: size of the input file; 0 if not known.
        priority: a higher one gets more of the work of the project.
    """

    id: BatchId
    project_id: ProjectId
    sequence: int
    deadline: float
    input_bytes: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """Batches with waiting segments of which a worker may lease one.

    Args:
        near: the batches with the nearest deadlines.
        by_project: for each project that was looked at, the oldest batch of its highest priority, its oldest
            and its smallest one.
        next_after: the project after which the next look begins; empty for the first project.
        priorities: of the batches that were passed over.
        by_model: the oldest batch of each of some models; the model is None for batches with several models.
        next_model: the model after which the next look at models begins; empty for the first model.
    """

    near: Sequence[OpenBatch]
    by_project: Sequence[Sequence[OpenBatch]]
    next_after: ProjectId
    priorities: Mapping[BatchId, int] = field(default_factory=dict[BatchId, int])
    by_model: Sequence[tuple[str | None, OpenBatch]] = ()
    next_model: str = ""


def preferred_batches(
    candidates: Candidates,
    held: Collection[OpenBatch],
    *,
    room_bytes: int,
    segment_bytes: int,
    most: int,
    is_needed: Callable[[str | None], bool] = lambda _: False,
) -> list[OpenBatch]:
    """The batches of which a worker leases a segment now, the most important first.

    Args:
        held: the batches of which the worker has unsent lines.
        room_bytes: of request lines that may be leased; the last `segment_bytes` are for small batches.
        segment_bytes: most bytes of a segment.
        most: how many batches.
        is_needed: whether an upstream has free slots for a model, and the worker no line.
    """
    of_project: dict[ProjectId, list[OpenBatch]] = {}
    for batch in held:
        of_project.setdefault(batch.project_id, []).append(batch)
    taken = {batch.id for batch in held}
    preferred: list[OpenBatch] = []
    near = {batch.id for batch in candidates.near}
    of_needed_models = [batch for model, batch in candidates.by_model if is_needed(model)]
    needed = {batch.id for batch in of_needed_models}
    for batch in chain(of_needed_models, _by_importance(candidates)):
        if len(preferred) == most:
            break
        cost_bytes = min(batch.input_bytes, segment_bytes)
        reserved_bytes = 0 if cost_bytes <= segment_bytes // 2 else segment_bytes
        beside = of_project.setdefault(batch.project_id, [])
        if batch.id in taken or cost_bytes > room_bytes - reserved_bytes:
            continue
        if batch.id not in needed and not _may_join(batch, beside, is_near=batch.id in near):
            continue
        preferred.append(batch)
        beside.append(batch)
        taken.add(batch.id)
        room_bytes -= cost_bytes
    return preferred


def _by_importance(candidates: Candidates) -> Iterator[OpenBatch]:
    yield from sorted(candidates.near, key=lambda batch: batch.deadline)
    for rank in range(max(map(len, candidates.by_project), default=0)):
        for batches in candidates.by_project:
            yield from batches[rank : rank + 1]


def _may_join(batch: OpenBatch, held: Sequence[OpenBatch], *, is_near: bool) -> bool:
    """Whether a batch may be sent beside the held ones of its project."""
    if sum(other.priority >= batch.priority for other in held) < PARALLEL_BATCHES:
        return True
    if batch.sequence < min(other.sequence for other in held):
        return True
    if is_near and batch.deadline < min(other.deadline for other in held):
        return True
    return 2 * max(1, batch.input_bytes) <= min(other.input_bytes for other in held)


def spread(count: int, batches: Sequence[OpenBatch]) -> list[tuple[OpenBatch, int]]:
    """`count` segments over batches as evenly as possible, at least one of each."""
    if not batches:
        return []
    each, more = divmod(max(count, len(batches)), len(batches))
    return [(batch, each + (place < more)) for place, batch in enumerate(batches)]


def in_sending_order(lines: Sequence[IndexedLine]) -> Sequence[IndexedLine]:
    """Lines of a segment: those much longer than most first, the longest before the others; at most one in
    eight. The other lines keep their order.
    """
    sizes = sorted(line.length_bytes for line in lines)
    if not sizes or sizes[-1] <= _LONG_FACTOR * sizes[len(sizes) // 2]:
        return lines
    most = max(1, int(len(sizes) * _MOST_LONG))
    least_bytes = max(_LONG_FACTOR * sizes[len(sizes) // 2] + 1, sizes[-most])
    long = [line for line in lines if line.length_bytes >= least_bytes]
    long = sorted(long, key=lambda line: -line.length_bytes)[:most]
    ordinals = {line.ordinal for line in long}
    return [*long, *(line for line in lines if line.ordinal not in ordinals)]


class Sendable(Protocol):
    """A leased segment as the queue sees it."""

    @property
    def batch(self) -> OpenBatch: ...
    @property
    def unsent(self) -> int: ...
    @property
    def line_work(self) -> float:
        """Work of an average line."""
        ...


_S = TypeVar("_S", bound=Sendable)


class _BatchTurns(Member, Generic[_S]):
    __slots__ = ("batch", "project", "segments")

    def __init__(self, batch: OpenBatch, project: "_ProjectTurns[_S]") -> None:
        super().__init__(batch.id, turn_work=TURN_WORK)
        self.batch = batch
        self.project = project
        self.segments: deque[_S] = deque()


class _ProjectTurns(Member, Generic[_S]):
    __slots__ = ("batches", "id")

    def __init__(self, project_id: ProjectId, *, weight: float) -> None:
        super().__init__(project_id, turn_work=TURN_WORK * weight)
        self.id = project_id
        self.batches: RoundRobin[_BatchTurns[_S]] = RoundRobin()

    def join(self, turns: "_BatchTurns[_S]") -> None:
        highest = max((other.batch.priority for other in self.batches), default=turns.batch.priority)
        turns.turn_work = turns.deficit = _turn_work(turns.batch.priority, max(highest, turns.batch.priority))
        self.batches.join(turns)
        self.share()

    def leave(self, turns: "_BatchTurns[_S]") -> None:
        self.batches.leave(turns)
        self.share()

    def share(self) -> None:
        """Gives each batch turns by its priority."""
        highest = max((turns.batch.priority for turns in self.batches), default=0)
        for turns in self.batches:
            turns.turn_work = _turn_work(turns.batch.priority, highest)
            turns.deficit = min(turns.deficit, turns.turn_work)


def _turn_work(priority: int, highest: int) -> float:
    return TURN_WORK * max(LEAST_TURN_SHARE, 2.0 ** (priority - highest))


class FairQueue(Generic[_S]):
    """The leased segments of one worker with lines to send.

    Args:
        weights: of projects; 1 where a project is missing.
    """

    __slots__ = ("_balance", "_batches", "_near", "_near_at", "_projects", "_round_robin", "_weights")

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._batches: dict[BatchId, _BatchTurns[_S]] = {}
        self._projects: dict[ProjectId, _ProjectTurns[_S]] = {}
        self._round_robin: RoundRobin[_ProjectTurns[_S]] = RoundRobin()
        self._near: dict[BatchId, _BatchTurns[_S]] = {}
        self._near_at = math.inf
        self._balance = 0.0  # above 0: batches with a near deadline have got less than their share

    def __iter__(self) -> Iterator[_S]:
        for turns in self._batches.values():
            yield from turns.segments

    @property
    def batches(self) -> list[OpenBatch]:
        """The batches with segments in the queue."""
        return [turns.batch for turns in self._batches.values()]

    def add(self, segment: _S) -> None:
        batch = segment.batch
        turns = self._batches.get(batch.id)
        if turns is None:
            project = self._projects.get(batch.project_id)
            if project is None:
                weight = self._weights.get(batch.project_id, 1.0)
                project = self._projects[batch.project_id] = _ProjectTurns(batch.project_id, weight=weight)
            turns = self._batches[batch.id] = _BatchTurns(batch, project)
            self._near_at = min(self._near_at, batch.deadline - NEAR_DEADLINE_S)
            self._join(turns)
        turns.segments.append(segment)

    def next(self, now: float) -> tuple[_S, int] | None:
        """The segment to send next, which stays in the queue, and how many of its lines; None if it is empty.

        Args:
            now: Unix seconds.
        """
        if not self._batches:
            return None
        if len(self._batches) == 1:
            (turns,) = self._batches.values()
            return turns.segments[0], turns.segments[0].unsent
        if now >= self._near_at:
            self._find_near(now)
        if self._near and (self._balance >= 0 or not self._round_robin):
            turns = min(self._near.values(), key=lambda turns: turns.batch.deadline)
            work: float = TURN_WORK
        else:
            project = self._round_robin.next()
            turns = project.batches.next()
            work = turns.deficit if len(project.batches) > 1 else math.inf
            if len(self._round_robin) > 1:
                work = min(work, project.deficit)
            elif work == math.inf:
                work = TURN_WORK  # the others have near deadlines
        segment = turns.segments[0]
        return segment, min(segment.unsent, max(1, math.ceil(work / segment.line_work)))

    def charge(self, segment: _S, lines: int) -> None:
        """Lines of a segment were sent. Not counted while no other batch waits."""
        turns = self._batches.get(segment.batch.id)
        if turns is None or not lines:
            return
        work = lines * segment.line_work
        if turns.key in self._near:
            if self._round_robin:
                self._balance -= work * (1 - NEAR_DEADLINE_SHARE)
            return
        if self._near:
            self._balance += work * NEAR_DEADLINE_SHARE
        turns.project.batches.charge(turns, work)
        self._round_robin.charge(turns.project, work)

    def update_batches(self) -> None:
        """Takes over the priorities and deadlines of the segments' batches, some of which have changed."""
        for turns in self._batches.values():
            has_moved = turns.batch.deadline != turns.segments[0].batch.deadline
            turns.batch = turns.segments[0].batch
            if has_moved:
                self._near_at = min(self._near_at, turns.batch.deadline - NEAR_DEADLINE_S)
                if self._near.pop(turns.batch.id, None) is not None:
                    self._join(turns)
                    self._balance = self._balance if self._near else 0.0
        for project in self._projects.values():
            project.share()

    def keep(self, is_kept: Callable[[_S], bool]) -> None:
        """Drops every segment for which `is_kept` is false."""
        self._drop([segment for segment in self if not is_kept(segment)])

    def remove(self, segment: _S) -> bool:
        """Takes a segment out; returns whether it was the last one of its batch."""
        self._drop([segment])
        return segment.batch.id not in self._batches

    def _drop(self, segments: Iterable[_S]) -> None:
        for segment in segments:
            turns = self._batches[segment.batch.id]
            turns.segments.remove(segment)
            if turns.segments:
                continue
            del self._batches[turns.batch.id]
            if self._near.pop(turns.batch.id, None) is None:
                self._leave(turns)
            elif not self._near:
                self._balance = 0.0

    def _join(self, turns: _BatchTurns[_S]) -> None:
        project = turns.project
        if not project.batches:
            self._round_robin.join(project)
        project.join(turns)

    def _leave(self, turns: _BatchTurns[_S]) -> None:
        project = turns.project
        project.leave(turns)
        if not project.batches:
            self._round_robin.leave(project)
            del self._projects[project.id]

    def _find_near(self, now: float) -> None:
        self._near_at = math.inf
        for turns in list(self._batches.values()):
            near_at = turns.batch.deadline - NEAR_DEADLINE_S
            if near_at > now:
                self._near_at = min(self._near_at, near_at)
            elif turns.key not in self._near:
                self._leave(turns)
                self._near[turns.batch.id] = turns
