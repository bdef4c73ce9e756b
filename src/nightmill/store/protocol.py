"""The verbs of durable truth. One code serves SQLite and Postgres; one conformance suite runs over both.

Duty: files, uploads, batches, segments, leases, projects, keys. Not its duty: bytes (see `blobs`) and policy
(see `batch`, `pacing`).

Rules every implementation keeps:

- A status is written by one statement, with the expected status in its WHERE. A verb that lost a race
  returns None or False; the caller reads again and decides again.
- A lease's `ttl_s` is added to the store's own clock; callers never compare clocks.
- A write under a lease names its token; a token that is not the newest changes nothing.
- `tally` of a batch is the sum over its segments, and is moved in the same transaction.
- `by` is who does it: what changes something for somebody is recorded in the audit log with the change. None
  is a role at its duty, which is not recorded.
- An unreachable or locked database raises `UnavailableError`; nothing is half-written.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from nightmill.core.api_key import ApiKey
from nightmill.core.audit import Actor, AuditAction, AuditEntry
from nightmill.core.batch import Batch, Status
from nightmill.core.concurrency import Grant, SlotRequest
from nightmill.core.file import File, Upload, UploadPart
from nightmill.core.legal_hold import Hold, HoldKind
from nightmill.core.limits import NO_LIMITS, Consumption, Limits, ProjectRules
from nightmill.core.segment import BeatReply, Lease, PinnedPart, Report, Segment, SegmentResult
from nightmill.core.slice import JoinedSlice, Slice
from nightmill.core.usage import Group, UsageRow
from nightmill.ids import BatchId, FileId, ProjectId, UploadId, WorkerId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `has_more` says whether another item lies behind the last one."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's Idempotency-Key, good for a day. `fingerprint` hashes the request it was first used for."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Duty:
    """The right to move one batch on: intake in `validating`, finalizing in `finalizing` and `cancelling`.

    It ends when the batch's status moves, whoever moved it.
    """

    batch: Batch
    index_blob_key: str | None
    token: int
    ttl_s: float
    is_sliced: bool = False
    """It was cut into slices, and all of them are joined."""


@dataclass(frozen=True, slots=True)
class SliceDuty:
    """The right to join one slice of a batch in `finalizing` or `cancelling`."""

    batch: Batch
    index_blob_key: str
    slice: Slice
    token: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is unfinished: batches by status, their segments that wait or are leased."""

    batches: dict[Status, int]
    waiting_segments: int
    leased_segments: int


class Store(Protocol):
    async def close(self) -> None: ...
    async def ping(self) -> None:
        """Raises UnavailableError when the store can't be used."""
        ...

    # --- files -----------------------------------------------------------------------------------
    async def add_file(
        self,
        file: File,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> File:
        """The stored file; with a known idempotency key the first one, and the new one is not stored.

        RequestError when the project keeps as much as it may.
        """
        ...

    async def file(self, project_id: ProjectId, file_id: FileId) -> File | None:
        """None when unknown, deleted, expired by the store's clock (unless held), or of another project."""
        ...

    async def list_files(
        self,
        project_id: ProjectId,
        *,
        purpose: str | None = None,
        after: FileId | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[File]:
        """By (created_at, order of insertion).

        `after` may name a deleted file; one never seen raises NotFoundError.
        """
        ...

    async def delete_file(self, project_id: ProjectId, file_id: FileId, *, by: Actor | None = None) -> bool:
        """Leaves a tombstone so that cursors stay good. False when there was nothing to delete.

        ConflictError when the file is under legal hold.
        """
        ...

    async def delete_expired_files(self) -> int:
        """How many were deleted of those that have expired; held ones stay. Ask again until it is 0."""
        ...

    async def unused_blobs(self, *, limit: int = 1_000) -> Sequence[str]:
        """Keys of deleted files, ended uploads' parts and finished batches' indexes that nothing needs.

        What a living file, an unfinished batch's input or anything under legal hold names is needed. The
        pieces of a blob are unused once the blob itself has been forgotten.
        """
        ...

    async def named_among(self, keys: Collection[str]) -> Set[str]:
        """Those of `keys` that anything names, deleted things whose bytes are not gone yet included."""
        ...

    async def forget_blobs(self, keys: Sequence[str]) -> None:
        """The bytes under `keys` are gone; don't name them again."""
        ...

    # --- uploads ---------------------------------------------------------------------------------
    async def add_upload(self, upload: Upload, *, by: Actor | None = None) -> None: ...
    async def upload(self, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
        """With its status as of now: `expired` once its hour is over."""
        ...

    async def add_upload_part(self, part: UploadPart) -> bool:
        """False when the upload is no longer pending."""
        ...

    async def upload_parts(self, upload_id: UploadId) -> Sequence[UploadPart]: ...
    async def complete_upload(
        self,
        upload: Upload,
        file: File,
        *,
        part_keys: Sequence[str] = (),
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> bool:
        """pending -> completed together with its file. False when it was no longer pending.

        The parts whose blobs `part_keys` names are the file's from then on: its pieces, or its only blob.
        RequestError when the project keeps as much as it may; the upload then stays pending.
        """
        ...

    async def cancel_upload(self, upload: Upload, *, by: Actor | None = None) -> bool: ...
    async def expire_uploads(self) -> int: ...

    # --- batches ---------------------------------------------------------------------------------
    async def create_batch(
        self,
        batch: Batch,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> Batch:
        """The stored batch; with a known key the first one. Same key, other fingerprint: ConflictError.

        QuotaError when the project has as much open as it may.
        """
        ...

    async def batch(self, project_id: ProjectId, batch_id: BatchId) -> Batch | None: ...
    async def list_batches(
        self, project_id: ProjectId, *, after: BatchId | None = None, limit: int = 20
    ) -> Page[Batch]:
        """Newest first by (created_at, order of insertion). A never-seen `after` raises NotFoundError."""
        ...

    async def batches_created_since(self, project_id: ProjectId, since: int) -> int: ...

    async def move_batch(self, after: Batch, *, expected: Status, by: Actor | None = None) -> bool:
        """Writes status and stamps of `after` where the status is still `expected`."""
        ...

    async def overdue_batches(self) -> Sequence[Batch]:
        """Batches `in_progress` whose deadline has passed by the store's clock."""
        ...

    async def settled_batches(self) -> Sequence[Batch]:
        """Batches `in_progress` whose every segment is done."""
        ...

    async def ended_among(self, batch_ids: Sequence[BatchId]) -> Sequence[BatchId]:
        """Those of `batch_ids` whose status is terminal."""
        ...

    async def backlog(self) -> Backlog: ...

    # --- duties: one role at a time moves a batch --------------------------------------------------
    async def lease_duty(
        self, statuses: Sequence[Status], worker_id: WorkerId, *, ttl_s: float
    ) -> Duty | None:
        """The oldest batch in one of `statuses` that nobody holds and that may be moved on.

        A batch in `finalizing` or `cancelling` may be moved on when none of its segments is leased (a lapsed
        lease is none). With the duty every segment that is not done waits under a token of its own, one
        higher than its last holder's: what that holder still says changes nothing. A batch that was cut into
        slices may be moved on once all of them are joined.
        """
        ...

    async def keep_duty(self, duty: Duty) -> bool: ...
    async def release_duty(self, duty: Duty) -> None: ...
    async def accept_batch(
        self,
        duty: Duty,
        after: Batch,
        *,
        index_blob_key: str,
        segments: Sequence[Segment],
        limits: Limits = NO_LIMITS,
    ) -> Batch | None:
        """validating -> in_progress with model, total and segments, fenced by the duty's token.

        Where that would be more than the project may have open: validating -> failed, and the batch returned
        says so. None when the duty was lost.
        """
        ...

    async def reject_batch(self, duty: Duty, after: Batch) -> bool:
        """validating -> failed with `after.errors`."""
        ...

    async def publish_batch(
        self,
        duty: Duty,
        after: Batch,
        *,
        files: Sequence[File],
        pieces: Mapping[str, Sequence[str]] | None = None,
    ) -> bool:
        """The final status, stamps, tally, file ids, files and the project's usage, in one transaction.

        `pieces` says of each file's blob that is made of others what they are.
        """
        ...

    # --- slices: several finalizers join one huge batch ----------------------------------------------
    async def cut_slices(self, duty: Duty, slices: Sequence[Slice]) -> bool:
        """The duty becomes slices that any finalizer may lease. False when the duty is no longer held."""
        ...

    async def lease_slice(self, worker_id: WorkerId, *, ttl_s: float) -> SliceDuty | None:
        """One that waits or whose lease has lapsed, under a token one higher than its last holder's."""
        ...

    async def keep_slice(self, duty: SliceDuty) -> bool: ...
    async def release_slice(self, duty: SliceDuty) -> None: ...
    async def complete_slice(self, duty: SliceDuty, joined: JoinedSlice) -> bool:
        """Done. From here on it names its pieces. False when the token is no longer the newest.

        ValueError when the lines don't add up.
        """
        ...

    async def joined_slices(self, batch_id: BatchId) -> Sequence[JoinedSlice]:
        """Those that are done, in order of number."""
        ...

    # --- segments --------------------------------------------------------------------------------
    async def lease_segments(self, worker_id: WorkerId, *, limit: int, ttl_s: float) -> Sequence[Lease]:
        """Waiting segments of `in_progress` batches before their deadline, oldest batch first."""
        ...

    async def pin_parts(self, lease: Lease, parts: Sequence[PinnedPart], report: Report) -> bool:
        """Records what a take-over found: `parts` and the tally replace what the store knew.

        False when the token is no longer the newest.
        """
        ...

    async def beat(self, worker_id: WorkerId, reports: Sequence[Report], *, ttl_s: float) -> BeatReply:
        """Prolongs every lease in `reports` and moves the tallies. Reports under old tokens change nothing.

        A report that counts less than an earlier one (beats overtake each other) only prolongs. Leases of a
        batch that is `cancelling` or `finalizing` still count until they are given back or lapse.
        """
        ...

    async def stopping(self, batch_ids: Collection[BatchId]) -> dict[BatchId, Status]:
        """Those that no longer want lines sent, and the status that says why. For between beats."""
        ...

    async def complete_segment(self, lease: Lease, report: Report, parts: Sequence[PinnedPart]) -> bool:
        """Done: every line answered. ValueError when the tally does not add up to the segment's count.

        Of `parts`, those not pinned yet are pinned behind the others; what is pinned keeps its length.

        When it was the batch's last, the caller may expect `settled_batches` to name the batch.
        """
        ...

    async def release_segment(self, lease: Lease, report: Report, parts: Sequence[PinnedPart]) -> bool:
        """Given back unfinished, with its parts; the next holder goes on behind them."""
        ...

    async def reap_segments(self) -> int:
        """Segments whose lease has lapsed wait again."""
        ...

    async def grant(self, request: SlotRequest, *, ttl_s: float) -> Grant:
        """How many attempts the worker may have in flight to the upstream for the next `ttl_s`.

        The unexpired grants of an upstream never add up to more than its concurrency limit (see
        `core.concurrency`).
        """
        ...

    async def release_all_leases(self) -> int:
        """Every lease, duty and grant of any worker.

        Only for a start that knows none lives (data lock held).
        """
        ...

    async def release_leases_of(self, worker_id: WorkerId) -> int:
        """Every lease, duty and grant of one worker. Only for whoever knows that it is dead."""
        ...

    async def segment_results(
        self, batch_id: BatchId, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[SegmentResult]:
        """Segments in order of number, from `after + 1` on."""
        ...

    # --- projects, holds, usage, audit -------------------------------------------------------------
    async def project_rules(self, project_id: ProjectId) -> ProjectRules:
        """What was set for the project; nothing for one never heard of."""
        ...

    async def set_project_rules(
        self, project_id: ProjectId, rules: ProjectRules, *, by: Actor | None = None
    ) -> None: ...
    async def consumption(self, project_id: ProjectId) -> Consumption:
        """What of its limits the project uses now."""
        ...

    async def set_hold(
        self, kind: HoldKind, subject_id: str, *, reason: str | None = None, by: Actor | None = None
    ) -> bool:
        """From its return on nobody deletes what is held. False when it was held already.

        NotFoundError when there is no such file or batch.
        """
        ...

    async def clear_hold(self, kind: HoldKind, subject_id: str, *, by: Actor | None = None) -> bool: ...
    async def list_holds(self) -> Sequence[Hold]: ...
    async def usage(
        self,
        groups: Sequence[Group],
        *,
        project_id: ProjectId | None = None,
        model: str | None = None,
        first_day: int | None = None,
        last_day: int | None = None,
    ) -> Sequence[UsageRow]:
        """Sums over ended batches; days count from 1970, both ends included."""
        ...

    async def record(
        self, by: Actor, act: AuditAction, subject_id: str, *, project_id: ProjectId | None = None
    ) -> None:
        """For what changes nothing else in the store."""
        ...

    async def audit(
        self,
        *,
        project_id: ProjectId | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Page[AuditEntry]:
        """Newest first, behind the entry whose sequence is `before`."""
        ...

    async def forget_audit(self, *, kept_s: float) -> int:
        """Removes older entries but for those of held projects."""
        ...

    # --- keys --------------------------------------------------------------------------------------
    async def add_api_key(self, key: ApiKey, *, by: Actor | None = None) -> None: ...
    async def api_key(self, digest: str) -> ApiKey | None:
        """The key with that digest, unless revoked."""
        ...

    async def list_api_keys(self) -> Sequence[ApiKey]: ...
    async def revoke_api_key(self, key_id: str, *, by: Actor | None = None) -> bool: ...
    async def has_api_keys(self) -> bool:
        """Revoked ones count: taking back the last key must not open the server to everybody."""
        ...
