"""Projects as tenants: what each may have open, what is held, who does what. No I/O.

Duty: the values, and the decisions over them. Promise: a decision is made from counts that the store took in
the transaction that creates. Not its duty: counting, and who is asking (`api.auth`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final, Literal, TypeAlias, get_args

from nightmill.batch import LineError, Tally
from nightmill.errors import QuotaError, RequestError

DAY_S: Final = 86_400
_BYTES_PER_TOKEN: Final = 4


class Scope(StrEnum):
    """What a key opens: its own project, or the operator's view of all of them too."""

    PROJECT = "project"
    ADMIN = "admin"


class HoldKind(StrEnum):
    """What can be under legal hold."""

    PROJECT = "project"
    FILE = "file"
    BATCH = "batch"


class Act(StrEnum):
    """What stands in the audit log. Polls and lines never do."""

    FILE_CREATED = "file.created"
    FILE_DELETED = "file.deleted"
    FILE_EXPIRED = "file.expired"
    FILE_DOWNLOADED = "file.downloaded"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_COMPLETED = "upload.completed"
    UPLOAD_CANCELLED = "upload.cancelled"
    BATCH_CREATED = "batch.created"
    BATCH_CANCELLED = "batch.cancelled"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    PROJECT_CHANGED = "project.changed"
    HOLD_SET = "hold.set"
    HOLD_CLEARED = "hold.cleared"
    SCHEMA_MIGRATED = "schema.migrated"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something. `name` is a key's id, or one of `operator`, `keyless` and `nightmill`.

    `hint` is the last four letters of the key, or the operator's login; never the key.
    """

    name: str
    hint: str | None = None
    address: str | None = None
    request_id: str | None = None


NIGHTMILL: Final = Actor("nightmill")
"""The program itself: what expires, and a data folder that is brought up to date at a start."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit log. `at` is by the store's clock, `detail` a few words that name no content."""

    sequence: int
    at: float
    by: Actor
    act: str
    project_id: str | None
    subject_id: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a project may have; 0 sets no limit. What is open belongs to batches that have not ended."""

    open_batches: int = 0
    open_lines: int = 0
    open_bytes: int = 0
    stored_bytes: int = 0
    enqueued_tokens: int = 0


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class ProjectRules:
    """What the operator has set for a project; None leaves it to the settings."""

    open_batches: int | None = None
    open_lines: int | None = None
    open_bytes: int | None = None
    stored_bytes: int | None = None
    enqueued_tokens: int | None = None
    input_ttl_s: int | None = None
    output_ttl_s: int | None = None

    def limits(self, defaults: Limits) -> Limits:
        return Limits(*(_chosen(getattr(self, it.name), getattr(defaults, it.name)) for it in fields(Limits)))


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody deletes what is under it. `subject_id` is a project, file or batch."""

    kind: HoldKind
    subject_id: str
    reason: str | None
    created_at: int


@dataclass(frozen=True, slots=True)
class Open:
    """What a project has in batches that have not ended."""

    batches: int = 0
    lines: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Consumption:
    """What of its limits a project uses. `enqueued_tokens` is by model; None: batches that name several."""

    open: Open
    stored_bytes: int
    enqueued_tokens: Mapping[str | None, int]


Group: TypeAlias = Literal["project", "model", "day"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What ended batches used. `project_id`, `model` and `day` (days since 1970) are None if not grouped by.

    An empty `model` stands for batches whose lines name several. `requests` holds the unanswered too.
    """

    project_id: str | None
    model: str | None
    day: int | None
    batches: int
    requests: int
    tally: Tally


def estimated_tokens(size_bytes: int) -> int:
    """Prompt tokens of an input file: a token for each four bytes.

    OpenAI's limit counts prompt tokens too. What a line may generate (`max_tokens`) is not added: most lines
    don't say, and a limit that jumps with a parameter nobody tunes is of no use for planning.
    """
    return -(-size_bytes // _BYTES_PER_TOKEN)


def refusal_to_create(limits: Limits, opened: Open, *, project_id: str, size_bytes: int) -> QuotaError | None:
    """Why a batch of `size_bytes` can't be opened on top of what is open."""
    for most, count, unit in (
        (limits.open_batches, opened.batches + 1, "batches"),
        (limits.open_bytes, opened.bytes + size_bytes, "bytes"),
        (limits.open_lines, opened.lines + 1, "requests"),
    ):
        if most and count > most:
            return QuotaError(_limit_reached(unit, most, project_id))
    return None


def refusal_to_accept(
    limits: Limits,
    opened: Open,
    *,
    project_id: str,
    total: int,
    model: str | None,
    tokens: int,
    enqueued: int,
) -> LineError | None:
    """Why a batch whose lines are known can't go on.

    Args:
        opened: without this batch's own lines.
        tokens: what this batch adds to `enqueued`, the tokens enqueued for its model.
    """
    if limits.enqueued_tokens and enqueued + tokens > limits.enqueued_tokens:
        message = (
            f"Enqueued token limit reached for {model or 'several models'} in project {project_id}. "
            f"Limit: {limits.enqueued_tokens:,} enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )
        return LineError("token_limit_exceeded", message)
    if limits.open_lines and opened.lines + total > limits.open_lines:
        return LineError("request_limit_exceeded", _limit_reached("requests", limits.open_lines, project_id))
    return None


def refusal_to_store(
    limits: Limits, *, project_id: str, stored_bytes: int, size_bytes: int
) -> RequestError | None:
    """Why a file can't be kept on top of those that are."""
    if not limits.stored_bytes or stored_bytes + size_bytes <= limits.stored_bytes:
        return None
    message = (
        f"Storage limit reached in project {project_id}: this file has {size_bytes:,} bytes, and "
        f"{stored_bytes:,} of {limits.stored_bytes:,} are used. Delete files and upload it again."
    )
    return RequestError(message, param="file", code="storage_limit_exceeded")


def _limit_reached(unit: str, most: int, project_id: str) -> str:
    return (
        f"Enqueued {unit} limit reached in project {project_id}. Limit: {most:,} enqueued {unit}. "
        "Please try again once some in_progress batches have been completed."
    )


def _chosen(own: int | None, default: int) -> int:
    return default if own is None else own
