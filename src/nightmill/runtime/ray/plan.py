"""How many workers there should be, and what must happen to those there are. No I/O.

Promise: what is wanted follows from the store's backlog alone. More workers come at once, fewer only when
fewer have been enough for `idle_s`. A launcher that starts anew knows nothing and does no harm: it waits
`idle_s` before it sends anybody away.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from nightmill.core.batch import Status
from nightmill.settings import RaySettings
from nightmill.store import Backlog


class ActorState(Enum):
    """What is known of one actor."""

    WAITING = auto()
    """It has not answered yet: Ray looks for a place, or starts it."""
    AT_WORK = auto()
    LEAVING = auto()
    """It drains and goes by itself."""
    SILENT = auto()
    """It answered before and does not any more: frozen, or its node is gone."""
    MISMATCHED = auto()
    """It is of no use: its node has another nightmill."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Numbers of workers. `drop` are ended at once, `leave` are asked to drain."""

    start: tuple[int, ...] = ()
    leave: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()


def is_needed(backlog: Backlog) -> bool:
    """Whether lines wait or are being answered, or soon may: a batch is being read."""
    return pending_segments(backlog) > 0 or backlog.batches.get(Status.VALIDATING, 0) > 0


def pending_segments(backlog: Backlog) -> int:
    return backlog.waiting_segments + backlog.leased_segments


def wanted_workers(backlog: Backlog, settings: RaySettings) -> int:
    """Within the bounds: one for each `segments_per_worker` unfinished segments."""
    wanted = -(-pending_segments(backlog) // settings.segments_per_worker)
    if is_needed(backlog):
        wanted = max(1, wanted)
    least = min(settings.min_workers, settings.max_workers)
    return max(least, min(settings.max_workers, wanted))


@dataclass(slots=True)
class ScaleDownDelay:
    """Follows a number up at once, and down to the most of the last `idle_s`."""

    idle_s: float
    _lately: list[tuple[float, int]] = field(default_factory=list)
    _since: float | None = None

    def target(self, wanted: int, *, present: int, now: float) -> int:
        """How many there should be, when `wanted` would do and `present` are there."""
        if self._since is None:
            self._since = now
        self._lately = [entry for entry in self._lately if now - entry[0] < self.idle_s and entry[1] > wanted]
        self._lately.append((now, wanted))
        if now - self._since < self.idle_s:
            return max(wanted, present)
        return max(count for _, count in self._lately)


def moves(present: Mapping[int, ActorState], *, target: int) -> Moves:
    """What brings the workers to `target`. The silent and the mismatched are dropped and count for
    nothing."""
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
    """Highest first: those go first."""
    return tuple(sorted((number for number, other in present.items() if other is kind), reverse=True))


def _free(taken: Collection[int], count: int) -> tuple[int, ...]:
    """The lowest numbers that nobody has."""
    free: list[int] = []
    number = 0
    while len(free) < count:
        if number not in taken:
            free.append(number)
        number += 1
    return tuple(free)
