"""Bulk actions: one action on many batches that is stored first and done afterwards, page by page. No I/O.

The order stores which batches are meant, so a batch that is created later is left alone. Each page of batches
is changed in one transaction together with the place that the action has reached: a process that dies leaves
whole pages, and any other process goes on from there.

    pending ---(its time has come)---> running ---(last batch)---> done
       |                                  |                          |
       |                                  +-----> undoing <----------+   (an action that can be undone)
       v                                  v          |
    cancelled <---(cancel, retry)---------+          +---> undone

Undoing gives a batch its earlier values back, unless it was changed again meanwhile. A cancellation and a
retry can't be undone, so they wait before they begin: until then they can be called off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from nightmill.core.audit import Actor
from nightmill.core.batch import Batch
from nightmill.core.steering import (
    Change,
    Pause,
    Resume,
    SetConcurrency,
    SetDeadline,
    SetPriority,
    SteeringAction,
)

UNDO_S: Final = 600.0
"""So many seconds after its end an action can still be undone."""

STEERED_FIELDS: Final = ("paused_at", "priority", "expires_at", "concurrency")
_IRREVERSIBLE: Final = frozenset({SteeringAction.CANCEL, SteeringAction.RETRY})

Earlier: TypeAlias = Mapping[str, tuple[int | None, int | None]]


class BulkActionState(StrEnum):
    """Where a bulk action is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    """No further batch is changed. What was changed before stays."""
    UNDOING = "undoing"
    UNDONE = "undone"

    @property
    def is_open(self) -> bool:
        """Whether there is work to do."""
        return self in (BulkActionState.PENDING, BulkActionState.RUNNING, BulkActionState.UNDOING)


class ItemResult(StrEnum):
    """What became of one batch of a bulk action."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    NOT_FOUND = "not_found"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkAction:
    """One action on many batches, as it is stored.

    Times are Unix seconds of the store's clock.

    Args:
        values: what the batches get: `priority`, `deadline` or `concurrency`, or which lines are retried
            (`codes`, `outcomes`).
        matched: how many batches were chosen; `total` of them are to be changed, the others are left alone.
        place: the sequence of the last batch that was dealt with.
        due_at: nothing is done before.
        note: why the action waits; None if it does not.
    """

    id: str
    project_id: str
    action: SteeringAction
    values: Mapping[str, Any]
    state: BulkActionState
    by: Actor
    undone_by: Actor | None
    created_at: float
    due_at: float
    ended_at: float | None
    matched: int
    total: int
    place: int
    counts: Mapping[ItemResult, int] = field(default_factory=dict[ItemResult, int])
    note: str | None = None

    @property
    def is_reversible(self) -> bool:
        return self.action not in _IRREVERSIBLE

    def undo_until(self, now: float) -> float | None:
        """Until when it can be undone or called off; None if that is not possible at `now`."""
        match self.state:
            case BulkActionState.PENDING:
                return max(self.due_at, now)
            case BulkActionState.RUNNING:
                return now + UNDO_S if self.is_reversible else now
            case BulkActionState.DONE if self.is_reversible and self.ended_at is not None:
                until = self.ended_at + UNDO_S
                return until if now <= until else None
            case _:
                return None


@dataclass(frozen=True, slots=True)
class BulkActionItem:
    """One batch of a bulk action. `result` is None while it waits.

    Args:
        earlier: for each value that was changed: as it was before, and what it was changed to.
        retry_id: the batch that repeats lines of this one.
    """

    sequence: int
    batch_id: str
    result: ItemResult | None
    message: str | None = None
    earlier: Earlier = field(default_factory=dict[str, tuple[int | None, int | None]])
    retry_id: str | None = None


def changes_of(action: SteeringAction, values: Mapping[str, Any]) -> list[Change]:
    """What the action makes of a batch; empty for an action that can't be undone."""
    match action:
        case SteeringAction.PAUSE:
            return [Pause()]
        case SteeringAction.RESUME:
            return [Resume()]
        case SteeringAction.PRIORITIZE:
            return [SetPriority(values["priority"])]
        case SteeringAction.DEADLINE:
            return [SetDeadline(values["deadline"])]
        case SteeringAction.LIMIT:
            return [SetConcurrency(values["concurrency"])]
        case SteeringAction.CANCEL | SteeringAction.RETRY:
            return []


def earlier_values(before: Batch, after: Batch) -> Earlier:
    """The steered values that differ."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in STEERED_FIELDS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def undoing(batch: Batch, earlier: Earlier) -> list[Change]:
    """The changes that give the batch its earlier values back.

    A value that is no longer what the action made it was changed by another request, and stays.
    """
    changes: list[Change] = []
    for name, (before, made) in earlier.items():
        if getattr(batch, name) != made:
            continue
        match name:
            case "paused_at":
                changes.append(Resume() if before is None else Pause())
            case "priority":
                changes.append(SetPriority(before or 0))
            case "expires_at":
                changes.append(SetDeadline(before or 0))
            case _:
                changes.append(SetConcurrency(before))
    return changes
