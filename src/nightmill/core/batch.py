"""The states of a batch and the events between them (docs/openai-behaviour.md 2). No I/O.

    validating ──accepted──▶ in_progress ──settled/lapsed──▶ finalizing ──completed──▶ completed
        │  │                     │                               └───────expired─────▶ expired
        │  └──rejected──▶ failed │
        └────cancel_requested────┴──▶ cancelling ──cancelled──▶ cancelled

- validating: the API creates a batch in this state; intake accepts or rejects it once the input is checked.
- in_progress: workers answer lines; the finalizer moves the batch on when every segment is done (settled),
  and maintenance when the deadline has passed (lapsed).
- finalizing: a finalizer writes the output files and completes the batch, or expires it if lines are missing.
- cancelling: the API moves a batch here when a client cancels; a finalizer writes the answers so far and then
  cancels the batch.
- completed, expired, cancelled, failed: final; nothing moves the batch on.

`Batch.after` is the only code that computes a status. One statement in `store` writes a status, always with
the expected status in its WHERE clause. `now` is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from nightmill.core.batch_options import BatchOptions, StopReason
from nightmill.errors import ConflictError
from nightmill.ids import BatchId, FileId, ProjectId


class Status(StrEnum):
    """The eight statuses on the wire. A client that polls would wait forever at any other status."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the status is final."""
        return self in TERMINAL


class Event(StrEnum):
    """What can happen to a batch; each event leads from one status to another (see `TRANSITIONS`)."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CANCEL_REQUESTED = "cancel_requested"
    SETTLED = "settled"
    LAPSED = "lapsed"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})

TRANSITIONS: Mapping[tuple[Status, Event], Status] = MappingProxyType(
    {
        (Status.VALIDATING, Event.ACCEPTED): Status.IN_PROGRESS,
        (Status.VALIDATING, Event.REJECTED): Status.FAILED,
        (Status.VALIDATING, Event.CANCEL_REQUESTED): Status.CANCELLING,
        (Status.IN_PROGRESS, Event.SETTLED): Status.FINALIZING,
        (Status.IN_PROGRESS, Event.LAPSED): Status.FINALIZING,
        (Status.IN_PROGRESS, Event.CANCEL_REQUESTED): Status.CANCELLING,
        (Status.FINALIZING, Event.COMPLETED): Status.COMPLETED,
        (Status.FINALIZING, Event.EXPIRED): Status.EXPIRED,
        (Status.CANCELLING, Event.CANCELLED): Status.CANCELLED,
    }
)

ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)

LOWEST_PRIORITY: Final = -10
HIGHEST_PRIORITY: Final = 10


@dataclass(frozen=True, slots=True)
class LineError:
    """One entry of a failed batch's `errors.data` (docs/openai-behaviour.md 4.3).

    `line` counts lines of the input file from 1, blank lines included.
    """

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token totals; every field is always present on the wire (docs/openai-behaviour.md 2.1)."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0

    def plus(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.total_tokens + other.total_tokens,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """How many lines were answered, and their usage: `completed` with a 2xx, `failed` with any other outcome.

    Lines that were cancelled or expired before an answer count in neither (docs/openai-behaviour.md 0.3).
    """

    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def answered(self) -> int:
        """Lines that have an answer of either kind."""
        return self.completed + self.failed

    def plus(self, other: "Tally") -> "Tally":
        return Tally(
            self.completed + other.completed, self.failed + other.failed, self.usage.plus(other.usage)
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as the store holds it.

    Times are Unix seconds. `expires_at` is the deadline. `input_blob_key` names the bytes of the input
    file and stays readable when the file itself is deleted. `output_expires_after_s` counts from the
    creation of the output file, or is None for the server's default. `input_bytes` and `enqueued_tokens` (an
    estimate, 0 before `in_progress`) count against the project's limits until the batch has ended.
    `priority` (`LOWEST_PRIORITY` to `HIGHEST_PRIORITY`) is compared with other batches of the project.

    Args:
        options: what the client set on create; see `core.batch_options`.
        paused_at: since when no line is sent; None while the batch is not paused.
        concurrency: the most attempts in flight for this batch; None for no limit of its own.
        canary_segments: only segments with a lower number may be leased until the canary has passed; None
            when all may be.
        stop_reason: why nightmill ended the batch early; None if it did not.
        invalid: lines of the input that were put aside as invalid; `total` and `tally.failed` count them.
        report_blob_key: the blob with one JSON object for each invalid line; None without one.
        retries: attempts beyond the first of a line. A worker that is killed does not report its latest ones.
    """

    id: BatchId
    project_id: ProjectId
    endpoint: str
    input_file_id: FileId
    input_blob_key: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = Status.VALIDATING
    model: str | None = None
    metadata: Mapping[str, str] | None = None
    output_expires_after_s: int | None = None
    errors: tuple[LineError, ...] = ()
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    total: int = 0
    input_bytes: int = 0
    enqueued_tokens: int = 0
    priority: int = 0
    options: BatchOptions = field(default_factory=BatchOptions)
    paused_at: int | None = None
    concurrency: int | None = None
    canary_segments: int | None = None
    stop_reason: StopReason | None = None
    invalid: int = 0
    report_blob_key: str | None = None
    retries: int = 0
    tally: Tally = field(default_factory=Tally)
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def newest_stamp(self) -> int:
        """The latest time at which the batch changed its status, in Unix seconds."""
        stamps = (
            self.created_at,
            self.in_progress_at,
            self.finalizing_at,
            self.completed_at,
            self.failed_at,
            self.expired_at,
            self.cancelling_at,
            self.cancelled_at,
        )
        return max(stamp for stamp in stamps if stamp is not None)

    def after(self, event: Event, *, now: float) -> "Batch":
        """The batch once `event` has happened at `now` (Unix seconds).

        The stamp of the new status is never before an older stamp, even if the clock was set back.

        Raises:
            ConflictError: the status does not admit the event.
        """
        status = TRANSITIONS.get((self.status, event))
        if status is None:
            verb = "cancel" if event is Event.CANCEL_REQUESTED else f"record '{event}' for"
            raise ConflictError(f"Cannot {verb} a batch with status '{self.status}'.")
        stamp = max(int(now), self.newest_stamp)
        return replace(self, status=status, **{f"{status}_at": stamp})
