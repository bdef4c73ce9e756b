"""How a running batch is steered: paused, resumed, given another priority, deadline or concurrency. No I/O.

A `Change` is what one request asks for. `steered` is the only code that says what a change makes of a batch.
A pause leaves the status as it is, so a client of the published API sees `in_progress`: no line of the batch
is sent until it is resumed, attempts in flight are answered, and the deadline stays where it is. A batch that
is validated while it is paused sends no line afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from nightmill.core.audit import AuditAction
from nightmill.core.batch import Batch, Status
from nightmill.core.history import EventKind
from nightmill.errors import ConflictError, RequestError

STEERABLE: Final = frozenset({Status.VALIDATING, Status.IN_PROGRESS})
"""The statuses in which a batch has lines to send, now or later."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Sends no further line until the batch is resumed."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Ends a pause."""


@dataclass(frozen=True, slots=True)
class SetPriority:
    """Gives the batch another share of the work of its project."""

    priority: int


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Moves the deadline to Unix seconds `expires_at`, earlier or later."""

    expires_at: int


@dataclass(frozen=True, slots=True)
class SetConcurrency:
    """Limits the attempts in flight of the batch over all workers; None removes the limit."""

    concurrency: int | None


Change = Pause | Resume | SetPriority | SetDeadline | SetConcurrency


class SteeringAction(StrEnum):
    """What can be done to several batches at once."""

    PAUSE = "pause"
    RESUME = "resume"
    PRIORITIZE = "prioritize"
    DEADLINE = "deadline"
    LIMIT = "limit"
    CANCEL = "cancel"
    RETRY = "retry"
    """A new batch of the failed lines of each batch."""


@dataclass(frozen=True, slots=True)
class BatchFilter:
    """Which batches are meant: those that match every field that is given.

    Args:
        statuses: one of these; any if empty.
        metadata: these pairs and possibly more.
        older_than_s: created at least so long ago.
        is_paused: whether the batch is paused; a batch that has ended is not.
        id_prefix: the beginning of the id, such as `batch_3f2a9c1b`.
        created_after: created at this Unix second or later.
        created_before: created before this Unix second.
        text: the beginning of the id, or else a text in the name of the input file or in a key or value of
            the metadata; upper and lower case of ASCII letters are the same.
        priority: exactly this one.
        served: by endpoint, the models of an upstream; "" stands for batches without a model of their own.
    """

    statuses: frozenset[Status] = frozenset()
    metadata: Mapping[str, str] | None = None
    older_than_s: float | None = None
    endpoint: str | None = None
    model: str | None = None
    is_paused: bool | None = None
    id_prefix: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    text: str | None = None
    priority: int | None = None
    served: Mapping[str, frozenset[str]] | None = None


class BatchOrder(StrEnum):
    """The order of a list of batches."""

    NEWEST = "newest"
    """Newest first."""
    UNFINISHED_FIRST = "unfinished_first"
    """Those that have not ended, newest first; then those that have ended, newest first."""


def steered(batch: Batch, change: Change, *, now: float) -> Batch:
    """The batch once a change was made at `now` (Unix seconds); the same batch if it changes nothing.

    Raises:
        ConflictError: the status does not admit the change.
        RequestError: the deadline would have passed.
    """
    match change:
        case Pause():
            _require(batch, STEERABLE, "pause")
            return batch if batch.paused_at is not None else replace(batch, paused_at=int(now))
        case Resume():
            _require(batch, STEERABLE, "resume")
            return replace(batch, paused_at=None)
        case SetPriority(priority):
            if batch.status.is_terminal:
                raise _conflict(batch, "change the priority of")
            return replace(batch, priority=priority)
        case SetDeadline(expires_at):
            _require(batch, STEERABLE, "change the deadline of")
            if expires_at <= now:
                message = f"Invalid 'deadline': {expires_at} is not in the future. Choose a later time."
                raise RequestError(message, param="deadline", code="invalid_value")
            return replace(batch, expires_at=expires_at)
        case SetConcurrency(concurrency):
            _require(batch, STEERABLE, "change the concurrency of")
            return replace(batch, concurrency=concurrency)


def record_of(change: Change, batch: Batch) -> tuple[EventKind, AuditAction, Mapping[str, Any]]:
    """How the history and the audit log name a change that was made.

    Args:
        batch: as it was before.
    """
    match change:
        case Pause():
            return EventKind.PAUSED, AuditAction.BATCH_PAUSED, {}
        case Resume():
            return EventKind.RESUMED, AuditAction.BATCH_RESUMED, {}
        case SetPriority(priority):
            return EventKind.PRIORITY_CHANGED, AuditAction.BATCH_PRIORITIZED, {"priority": priority}
        case SetDeadline(expires_at):
            detail = {"expires_at": expires_at, "before": batch.expires_at}
            return EventKind.DEADLINE_CHANGED, AuditAction.BATCH_DEADLINE_CHANGED, detail
        case SetConcurrency(concurrency):
            detail = {"concurrency": concurrency, "before": batch.concurrency}
            return EventKind.CONCURRENCY_CHANGED, AuditAction.BATCH_CONCURRENCY_CHANGED, detail


def _require(batch: Batch, statuses: frozenset[Status], verb: str) -> None:
    if batch.status not in statuses:
        raise _conflict(batch, verb)


def _conflict(batch: Batch, verb: str) -> ConflictError:
    return ConflictError(f"Cannot {verb} a batch with status '{batch.status}'.")
