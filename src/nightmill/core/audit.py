"""Entries of the audit log: which actor did what, to which object, when. No I/O."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

KEYLESS: Final = "keyless"
"""The actor of requests without a key, while a server needs none."""


class AuditAction(StrEnum):
    """Actions that the audit log records. Polling and the work on single lines are not recorded."""

    FILE_CREATED = "file.created"
    FILE_DELETED = "file.deleted"
    FILE_EXPIRED = "file.expired"
    FILE_DOWNLOADED = "file.downloaded"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_COMPLETED = "upload.completed"
    UPLOAD_CANCELLED = "upload.cancelled"
    BATCH_CREATED = "batch.created"
    BATCH_CANCELLED = "batch.cancelled"
    BATCH_PRIORITIZED = "batch.prioritized"
    BATCH_PAUSED = "batch.paused"
    BATCH_RESUMED = "batch.resumed"
    BATCH_DEADLINE_CHANGED = "batch.deadline_changed"
    BATCH_CONCURRENCY_CHANGED = "batch.concurrency_changed"
    BATCH_REMOVED = "batch.removed"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    PROJECT_CHANGED = "project.changed"
    HOLD_SET = "hold.set"
    HOLD_CLEARED = "hold.cleared"
    UPSTREAM_ADDED = "upstream.added"
    UPSTREAM_CHANGED = "upstream.changed"
    UPSTREAM_PAUSED = "upstream.paused"
    UPSTREAM_RESUMED = "upstream.resumed"
    UPSTREAM_DRAINED = "upstream.drained"
    UPSTREAM_REMOVED = "upstream.removed"
    UPSTREAM_RESET = "upstream.reset"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_DELETED = "webhook.deleted"
    SCHEMA_MIGRATED = "schema.migrated"


@dataclass(frozen=True, slots=True)
class Actor:
    """The originator of an action.

    Args:
        name: the id of an API key, or one of `operator`, `keyless` and `nightmill`.
        hint: the last four characters of the key, or the operator's login; never the key.
    """

    name: str
    hint: str | None = None
    address: str | None = None
    request_id: str | None = None


NIGHTMILL: Final = Actor("nightmill")
"""The program itself, for expiry and for migrations of a data folder at a start."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit log. `at` is Unix seconds of the store's clock; `detail` is short and holds no
    content.
    """

    sequence: int
    at: float
    by: Actor
    action: str
    project_id: str | None
    subject_id: str
    detail: str | None
