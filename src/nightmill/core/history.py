"""The history of a batch: what happened to it, when, and by which actor. No I/O.

Each move of the status is recorded in the transaction of the move, so the history has no gaps. Single lines
are not recorded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nightmill.ids import BatchId


class EventKind(StrEnum):
    """What can happen to a batch. The kinds up to `CANCELLED` are moves of its status."""

    CREATED = "created"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    RESUMED = "resumed"
    PRIORITY_CHANGED = "priority_changed"
    DEADLINE_CHANGED = "deadline_changed"
    CONCURRENCY_CHANGED = "concurrency_changed"
    LIMITED = "limited"
    """What limits the batch has changed; the detail has the sentence."""
    CANARY_PASSED = "canary_passed"
    STOPPED = "stopped"
    """nightmill stops the batch; the detail has the `StopReason`."""
    RETRIED = "retried"
    """Another batch repeats lines of this one; the detail names it."""


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """One entry of the history of a batch.

    Args:
        sequence: grows with each entry of the store.
        at: Unix seconds of the store's clock.
        actor: the name of the `Actor`; None for nightmill itself.
        detail: a JSON object, without prompts and answers.
    """

    sequence: int
    batch_id: BatchId
    at: float
    kind: EventKind
    actor: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
