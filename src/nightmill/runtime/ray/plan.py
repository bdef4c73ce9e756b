"""How many workers a cluster should have, and which to start, drain or kill. No I/O.

The wanted number follows from the store's backlog alone. Workers are added at once, and removed only when
fewer have been enough for `idle_s`. A new launcher has no history: it waits `idle_s` before it removes a
worker.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from nightmill.core.batch import Status
from nightmill.settings import RaySettings
from nightmill.store import Backlog


class ActorState(Enum):
    """What the launcher knows of one actor."""

    WAITING = auto()
    """The actor has not answered yet: Ray looks for a node, or starts the actor."""
    AT_WORK = auto()
    """The actor answers and works."""
    LEAVING = auto()
    """The actor drains and then exits by itself."""
    SILENT = auto()
    """The actor answered before and no longer does: it is frozen, or its node is gone."""
    MISMATCHED = auto()
    """The node of the actor has another version of nightmill, so the actor is of no use."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Numbers of workers to start, to drain (`leave`) and to kill (`drop`)."""

    start: tuple[int, ...] = ()
    leave: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()


def is_needed(backlog: Backlog) -> bool:
    """Whether lines wait or are in flight, or soon may be: a batch is being validated."""
    return pending_segments(backlog) > 0 or backlog.batches.get(Status.VALIDATING, 0) > 0


def pending_segments(backlog: Backlog) -> int:
    return backlog.waiting_segments + backlog.leased_segments


def wanted_workers(backlog: Backlog, settings: RaySettings) -> int:
    """One for each `segments_per_worker` unfinished segments, within the bounds of the settings."""
    wanted = -(-pending_segments(backlog) // settings.segments_per_worker)
    if is_needed(backlog):
        wanted = max(1, wanted)
    least = min(settings.min_workers, settings.max_workers)
    return max(least, min(settings.max_workers, wanted))


@dataclass(slots=True)
class ScaleDownDelay:
    """Follows the wanted number up at once, and down to the maximum of the last `idle_s`."""

    idle_s: float
    _recent: list[tuple[float, int]] = field(default_factory=list)
    _since: float | None = None

    def target(self, wanted: int, *, present: int, now: float) -> int:
        """How many workers there should be, when `wanted` are enough and `present` exist."""
        if self._since is None:
            self._since = now
        self._recent = [entry for entry in self._recent if now - entry[0] < self.idle_s and entry[1] > wanted]
        self._recent.append((now, wanted))
        if now - self._since < self.idle_s:
            return max(wanted, present)
        return max(count for _, count in self._recent)


def moves(present: Mapping[int, ActorState], *, target: int) -> Moves:
    """What brings the number of workers to `target`.

    Actors that do not answer, or run another version, are killed and not counted.
    """
    useless = tuple(
        sorted(
            number for number, kind in present.items() if kind in (ActorState.SILENT, ActorState.MISMATCHED)
        )
    )
    waiting = _having(present, ActorState.WAITING)
    at_work = _having(present, ActorState.AT_WORK)
    surplus = len(waiting) + len(at_work) - target
    if surplus <= 0:
        return Moves(start=_free(present, -surplus), drop=useless)
    dropped = waiting[:surplus]
    leaving = at_work[: surplus - len(dropped)]
    return Moves(leave=leaving, drop=(*useless, *dropped))


def _having(present: Mapping[int, ActorState], kind: ActorState) -> tuple[int, ...]:
    """Numbers of the actors in a state, highest first: those are removed first."""
    return tuple(sorted((number for number, other in present.items() if other is kind), reverse=True))


def _free(taken: Collection[int], count: int) -> tuple[int, ...]:
    """The lowest unused numbers."""
    free: list[int] = []
    number = 0
    while len(free) < count:
        if number not in taken:
            free.append(number)
        number += 1
    return tuple(free)
