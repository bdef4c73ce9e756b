"""`SqlStore`: every verb of the protocol, each one transaction of the file named after its noun."""

import time
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Literal

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from nightmill.core.audit import Actor, AuditAction, AuditEntry
from nightmill.core.batch import Batch, Status
from nightmill.core.concurrency import Grant, SlotRequest
from nightmill.core.file import File, Upload, UploadPart
from nightmill.core.legal_hold import Hold, HoldKind
from nightmill.core.limits import NO_LIMITS, Consumption, Limits, ProjectRules
from nightmill.core.segment import BeatReply, Lease, PinnedPart, Report, Segment, SegmentResult
from nightmill.core.slice import JoinedSlice, Slice
from nightmill.core.usage import Group, UsageRow
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId, FileId, ProjectId, UploadId, WorkerId
from nightmill.store import audit, batches, duties, files, grants, holds, keys, projects, segments, usage
from nightmill.store import slices as _slices
from nightmill.store.clock import Clock
from nightmill.store.compatibility import schema_refusal
from nightmill.store.connection import open_database
from nightmill.store.database import Database
from nightmill.store.inventory import named_among
from nightmill.store.protocol import ApiKey, Backlog, Duty, Idempotency, Page, SliceDuty, Store
from nightmill.store.sqlite import BUSY_TIMEOUT_S


def open_store(url: str, *, clock: Clock | None = None, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "SqlStore":
    """A store over the database at `url`, which `migrate` has brought up to date. Connects at the first call.

    Args:
        url: `sqlite:///relative.sqlite`, `sqlite:////absolute.sqlite` or `postgresql://user@host/database`.
        clock: the store's clock where the database has none of its own (SQLite).
        busy_timeout_s: a call fails after waiting so long for another process's transaction, or an answer.
    """
    return SqlStore(open_database(url, clock=clock or time.time, busy_timeout_s=busy_timeout_s))


class SqlStore(Store):
    """See `Store`; here only which transaction each verb is."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = database.read
        self._write = database.write

    async def close(self) -> None:
        await self._database.close()

    async def ping(self) -> None:
        try:
            await self._read(_check_schema)
        except DBAPIError as error:
            message = "the store's schema can't be read: restart nightmill, which makes it"
            raise UnavailableError(message) from error

    async def add_file(
        self,
        file: File,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> File:
        return await self._write(files.add_file, file, idempotency, limits, by)

    async def file(self, project_id: ProjectId, file_id: FileId) -> File | None:
        return await self._read(files.find_file, project_id, file_id)

    async def list_files(
        self,
        project_id: ProjectId,
        *,
        purpose: str | None = None,
        after: FileId | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[File]:
        return await self._read(files.list_files, project_id, purpose, after, limit, order)

    async def delete_file(self, project_id: ProjectId, file_id: FileId, *, by: Actor | None = None) -> bool:
        return await self._write(files.delete_file, project_id, file_id, by)

    async def delete_expired_files(self) -> int:
        return await self._write(files.delete_expired_files)

    async def unused_blobs(self, *, limit: int = 1_000) -> Sequence[str]:
        return await self._read(files.unused_blobs, limit)

    async def named_among(self, keys: Collection[str]) -> Set[str]:
        return await self._read(named_among, keys)

    async def forget_blobs(self, keys: Sequence[str]) -> None:
        await self._write(files.forget_blobs, keys)

    async def add_upload(self, upload: Upload, *, by: Actor | None = None) -> None:
        await self._write(files.add_upload, upload, by)

    async def upload(self, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
        return await self._read(files.find_upload, project_id, upload_id)

    async def add_upload_part(self, part: UploadPart) -> bool:
        return await self._write(files.add_upload_part, part)

    async def upload_parts(self, upload_id: UploadId) -> Sequence[UploadPart]:
        return await self._read(files.upload_parts, upload_id)

    async def complete_upload(
        self,
        upload: Upload,
        file: File,
        *,
        part_keys: Sequence[str] = (),
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> bool:
        return await self._write(files.complete_upload, upload, file, part_keys, limits, by)

    async def cancel_upload(self, upload: Upload, *, by: Actor | None = None) -> bool:
        return await self._write(files.cancel_upload, upload, by)

    async def expire_uploads(self) -> int:
        return await self._write(files.expire_uploads)

    async def create_batch(
        self,
        batch: Batch,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> Batch:
        return await self._write(batches.create_batch, batch, idempotency, limits, by)

    async def batch(self, project_id: ProjectId, batch_id: BatchId) -> Batch | None:
        return await self._read(batches.find_batch, project_id, batch_id)

    async def list_batches(
        self, project_id: ProjectId, *, after: BatchId | None = None, limit: int = 20
    ) -> Page[Batch]:
        return await self._read(batches.list_batches, project_id, after, limit)

    async def batches_created_since(self, project_id: ProjectId, since: int) -> int:
        return await self._read(batches.batches_created_since, project_id, since)

    async def move_batch(self, after: Batch, *, expected: Status, by: Actor | None = None) -> bool:
        return await self._write(batches.move_batch, after, expected, by)

    async def overdue_batches(self) -> Sequence[Batch]:
        return await self._read(batches.overdue_batches)

    async def settled_batches(self) -> Sequence[Batch]:
        return await self._read(batches.settled_batches)

    async def ended_among(self, batch_ids: Sequence[BatchId]) -> Sequence[BatchId]:
        return await self._read(batches.ended_among, batch_ids) if batch_ids else ()

    async def backlog(self) -> Backlog:
        return await self._read(batches.backlog)

    async def lease_duty(
        self, statuses: Sequence[Status], worker_id: WorkerId, *, ttl_s: float
    ) -> Duty | None:
        return await self._write(duties.lease_duty, statuses, worker_id, ttl_s)

    async def keep_duty(self, duty: Duty) -> bool:
        return await self._write(duties.keep_duty, duty)

    async def release_duty(self, duty: Duty) -> None:
        await self._write(duties.release_duty, duty)

    async def accept_batch(
        self,
        duty: Duty,
        after: Batch,
        *,
        index_blob_key: str,
        segments: Sequence[Segment],
        limits: Limits = NO_LIMITS,
    ) -> Batch | None:
        return await self._write(duties.accept_batch, duty, after, index_blob_key, segments, limits)

    async def reject_batch(self, duty: Duty, after: Batch) -> bool:
        return await self._write(duties.reject_batch, duty, after)

    async def publish_batch(
        self,
        duty: Duty,
        after: Batch,
        *,
        files: Sequence[File],
        pieces: Mapping[str, Sequence[str]] | None = None,
    ) -> bool:
        return await self._write(duties.publish_batch, duty, after, files, pieces)

    async def cut_slices(self, duty: Duty, slices: Sequence[Slice]) -> bool:
        return await self._write(_slices.cut_slices, duty, slices)

    async def lease_slice(self, worker_id: WorkerId, *, ttl_s: float) -> SliceDuty | None:
        return await self._write(_slices.lease_slice, worker_id, ttl_s)

    async def keep_slice(self, duty: SliceDuty) -> bool:
        return await self._write(_slices.keep_slice, duty)

    async def release_slice(self, duty: SliceDuty) -> None:
        await self._write(_slices.release_slice, duty)

    async def complete_slice(self, duty: SliceDuty, joined: JoinedSlice) -> bool:
        return await self._write(_slices.complete_slice, duty, joined)

    async def joined_slices(self, batch_id: BatchId) -> Sequence[JoinedSlice]:
        return await self._read(_slices.joined_slices, batch_id)

    async def lease_segments(self, worker_id: WorkerId, *, limit: int, ttl_s: float) -> Sequence[Lease]:
        return await self._write(segments.lease_segments, worker_id, limit, ttl_s)

    async def pin_parts(self, lease: Lease, parts: Sequence[PinnedPart], report: Report) -> bool:
        return await self._write(segments.pin_parts, lease, parts, report)

    async def beat(self, worker_id: WorkerId, reports: Sequence[Report], *, ttl_s: float) -> BeatReply:
        return await self._write(segments.beat, worker_id, reports, ttl_s)

    async def stopping(self, batch_ids: Collection[BatchId]) -> dict[BatchId, Status]:
        return await self._read(segments.stopping, batch_ids)

    async def complete_segment(self, lease: Lease, report: Report, parts: Sequence[PinnedPart]) -> bool:
        return await self._write(segments.complete_segment, lease, report, parts)

    async def release_segment(self, lease: Lease, report: Report, parts: Sequence[PinnedPart]) -> bool:
        return await self._write(segments.release_segment, lease, report, parts)

    async def reap_segments(self) -> int:
        return await self._write(segments.reap_segments)

    async def grant(self, request: SlotRequest, *, ttl_s: float) -> Grant:
        return await self._write(grants.grant, request, ttl_s)

    async def release_all_leases(self) -> int:
        return await self._write(_release_all_leases)

    async def release_leases_of(self, worker_id: WorkerId) -> int:
        return await self._write(_release_leases_of, worker_id)

    async def segment_results(
        self, batch_id: BatchId, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[SegmentResult]:
        return await self._read(segments.segment_results, batch_id, after, limit)

    async def project_rules(self, project_id: ProjectId) -> ProjectRules:
        return await self._read(projects.rules_of, project_id)

    async def set_project_rules(
        self, project_id: ProjectId, rules: ProjectRules, *, by: Actor | None = None
    ) -> None:
        await self._write(projects.change_rules, project_id, rules, by)

    async def consumption(self, project_id: ProjectId) -> Consumption:
        return await self._read(projects.consumption, project_id)

    async def set_hold(
        self, kind: HoldKind, subject_id: str, *, reason: str | None = None, by: Actor | None = None
    ) -> bool:
        return await self._write(holds.set_hold, kind, subject_id, reason, by)

    async def clear_hold(self, kind: HoldKind, subject_id: str, *, by: Actor | None = None) -> bool:
        return await self._write(holds.clear_hold, kind, subject_id, by)

    async def list_holds(self) -> Sequence[Hold]:
        return await self._read(holds.list_holds)

    async def usage(
        self,
        groups: Sequence[Group],
        *,
        project_id: ProjectId | None = None,
        model: str | None = None,
        first_day: int | None = None,
        last_day: int | None = None,
    ) -> Sequence[UsageRow]:
        return await self._read(usage.report, groups, project_id, model, first_day, last_day)

    async def record(
        self, by: Actor, act: AuditAction, subject_id: str, *, project_id: ProjectId | None = None
    ) -> None:
        await self._write(audit.record, by, act, subject_id, project_id=project_id)

    async def audit(
        self,
        *,
        project_id: ProjectId | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Page[AuditEntry]:
        return await self._read(audit.entries, project_id, since, before, limit)

    async def forget_audit(self, *, kept_s: float) -> int:
        return await self._write(audit.forget_older_than, kept_s)

    async def add_api_key(self, key: ApiKey, *, by: Actor | None = None) -> None:
        await self._write(keys.add_api_key, key, by)

    async def api_key(self, digest: str) -> ApiKey | None:
        return await self._read(keys.find_api_key, digest)

    async def list_api_keys(self) -> Sequence[ApiKey]:
        return await self._read(keys.list_api_keys)

    async def revoke_api_key(self, key_id: str, *, by: Actor | None = None) -> bool:
        return await self._write(keys.revoke_api_key, key_id, by)

    async def has_api_keys(self) -> bool:
        return await self._read(keys.has_api_keys)


def _release_all_leases(connection: Connection) -> int:
    grants.release_all_grants(connection)
    return (
        segments.release_all_segments(connection)
        + duties.release_all_duties(connection)
        + _slices.release_all_slices(connection)
    )


def _release_leases_of(connection: Connection, worker_id: WorkerId) -> int:
    grants.release_grants_of(connection, worker_id)
    return (
        segments.release_segments_of(connection, worker_id)
        + duties.release_duties_of(connection, worker_id)
        + _slices.release_slices_of(connection, worker_id)
    )


def _check_schema(connection: Connection) -> None:
    if (reason := schema_refusal(connection)) is not None:
        raise UnavailableError(reason)
