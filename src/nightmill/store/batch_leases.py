"""Batch leases: one role at a time moves a batch on from `validating`, `finalizing` or `cancelling`.

A batch is leased like a segment (see `leased_table`). The lease ends when the batch's status moves, so intake
that works on a batch that was cancelled meanwhile can neither accept nor reject the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, delete, exists, insert, or_, select, text, update

from nightmill.core.batch import Batch, Event, LineError, Status
from nightmill.core.file import File
from nightmill.core.limits import NO_LIMITS, Limits, refusal_to_accept
from nightmill.core.schedule import STEP_ORDER
from nightmill.core.segment import Segment
from nightmill.ids import WorkerId
from nightmill.store import projects, schema, usage
from nightmill.store.batch_watch_schema import line_report
from nightmill.store.batches import BATCH_COLUMNS, LEASES, as_batch, dump_errors, moving, write_status
from nightmill.store.clock import now
from nightmill.store.rows import insert_all, row_of
from nightmill.store.schema import DONE, LEASED, WAITING, batch, file, piece, segment, slice_
from nightmill.store.segments import LEASES as SEGMENT_LEASES
from nightmill.store.segments import segment_row
from nightmill.store.tallies import set_tally, tally_parameters
from nightmill.store.verbs import Verbs, write

_has_live_lease = exists().where(
    segment.c.batch_id == batch.c.id, segment.c.state == LEASED, segment.c.lease_expires_at > now()
)
_has_open_slice = exists().where(slice_.c.batch_id == batch.c.id, text("slice." + schema.IS_OPEN_SLICE))
_CANDIDATE = (
    select(batch.c.id)
    .where(
        text(schema.IS_LEASABLE),
        batch.c.status.in_(bindparam("statuses", expanding=True)),
        or_(batch.c.lease_worker_id.is_(None), batch.c.lease_expires_at <= now()),
        ~_has_live_lease,
        ~_has_open_slice,
    )
    .order_by(*(batch.c[name] for name in STEP_ORDER))
    .limit(1)
    .with_for_update(skip_locked=True, of=batch)
)
# The last lease holder of an unfinished segment can add nothing to the segment from here on.
_OUTDATE_SEGMENT_LEASES = (
    update(segment)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.state != DONE,
        segment.c.token > 0,
        or_(segment.c.state == WAITING, segment.c.lease_expires_at <= now()),
    )
    .values(token=segment.c.token + 1, **SEGMENT_LEASES.released)
)
_LIVE_SEGMENT_LEASE = select(segment.c.number).where(
    segment.c.batch_id == bindparam("of_batch_id"), segment.c.state == LEASED
)
_LEASE = LEASES.lease().returning(
    *BATCH_COLUMNS,
    batch.c.index_blob_key,
    batch.c.lease_token,
    exists().where(slice_.c.batch_id == batch.c.id).label("is_sliced"),
)
_RENEW = LEASES.renew()
_RELEASE = LEASES.release()

_ACCEPT = moving(
    fenced_by=LEASES.held,
    model=bindparam("new_model"),
    total=bindparam("new_total"),
    index_blob_key=bindparam("new_index_blob_key"),
    segments_left=bindparam("new_segments_left"),
    enqueued_tokens=bindparam("new_enqueued_tokens"),
    failed=bindparam("new_invalid"),
    invalid=bindparam("new_invalid"),
    report_blob_key=bindparam("new_report_blob_key"),
    canary_segments=bindparam("new_canary_segments"),
)
_REJECT = moving(
    fenced_by=LEASES.held,
    errors=bindparam("new_errors"),
    model=bindparam("new_model"),
    report_blob_key=bindparam("new_report_blob_key"),
)
_PUBLISH = moving(
    fenced_by=LEASES.held,
    output_file_id=bindparam("new_output_file_id"),
    error_file_id=bindparam("new_error_file_id"),
    segments_left=0,
    usage_day=usage.TODAY,
    **set_tally(),
)
_ADD_SEGMENTS = insert(segment)
_ADD_FILES = insert(file)
_ADD_PIECES = insert(piece)
_DELETE_SLICES = delete(slice_).where(slice_.c.batch_id == bindparam("of_batch_id"))
_DELETE_LINE_REPORTS = delete(line_report).where(line_report.c.batch_id == bindparam("of_batch_id"))
_DELETE_SEGMENTS = delete(segment).where(segment.c.batch_id == bindparam("of_batch_id"))


@dataclass(frozen=True, slots=True)
class BatchLease:
    """The right to move one batch on: intake in `validating`, the finalizer in `finalizing` and `cancelling`.

    It ends when the batch's status moves, by whatever transaction.
    """

    batch: Batch
    index_blob_key: str | None
    token: int
    ttl_s: float
    is_sliced: bool = False
    """The batch was cut into slices, and all of them are joined."""


class BatchLeases(Verbs):
    """Leases of batches, and what may be done to a batch under a lease."""

    @write
    @staticmethod
    def lease(
        connection: Connection, statuses: Sequence[Status], worker_id: WorkerId, *, ttl_s: float
    ) -> BatchLease | None:
        """Leases the oldest batch in one of `statuses` that is not leased and may be moved on.

        A batch in `finalizing` or `cancelling` may be moved on when none of its segments has an unexpired
        lease. With the lease, every segment that is not done waits under a token one higher than its last
        lease holder's: later reports of that holder change nothing. A batch that was cut into slices may be
        moved on once all of them are joined.
        """
        candidate = connection.execute(
            _CANDIDATE, {"statuses": [status.value for status in statuses]}
        ).scalar_one_or_none()
        if candidate is None:
            return None
        connection.execute(_OUTDATE_SEGMENT_LEASES, {"of_batch_id": candidate})
        if connection.execute(_LIVE_SEGMENT_LEASE, {"of_batch_id": candidate}).first() is not None:
            return None  # on Postgres a segment may have been renewed since the candidate was read
        given = {"of_batch_id": candidate, "new_worker_id": worker_id, "ttl_s": ttl_s}
        row = connection.execute(_LEASE, given).one()
        return BatchLease(as_batch(row), row.index_blob_key, row.lease_token, ttl_s, bool(row.is_sliced))

    @write
    @staticmethod
    def renew(connection: Connection, lease: BatchLease) -> bool:
        """False when the lease is lost."""
        return connection.execute(_RENEW, {**_fence(lease), "ttl_s": lease.ttl_s}).rowcount == 1

    @write
    @staticmethod
    def release(connection: Connection, lease: BatchLease) -> bool:
        """False when the lease was lost already."""
        return connection.execute(_RELEASE, _fence(lease)).rowcount == 1

    @write
    @staticmethod
    def accept(
        connection: Connection,
        lease: BatchLease,
        after: Batch,
        *,
        index_blob_key: str,
        segments: Sequence[Segment],
        limits: Limits = NO_LIMITS,
    ) -> Batch | None:
        """validating -> in_progress with model, counts, report and segments, fenced by the lease's token.

        Where the project would then have more open than it may: validating -> failed, and the batch returned
        says so. None when the lease was lost.
        """
        if (refusal := _refusal(connection, after, limits)) is not None:
            refused = replace(
                lease.batch.after(Event.REJECTED, now=after.newest_stamp),
                model=after.model,
                errors=(refusal,),
            )
            return refused if BatchLeases.reject(connection, lease, refused) else None
        is_accepted = write_status(
            connection,
            _ACCEPT,
            after,
            expected=lease.batch.status,
            parameters={
                "held_token": lease.token,
                "new_model": after.model,
                "new_total": after.total,
                "new_index_blob_key": index_blob_key,
                "new_segments_left": len(segments),
                "new_enqueued_tokens": after.enqueued_tokens,
                "new_invalid": after.invalid,
                "new_report_blob_key": after.report_blob_key,
                "new_canary_segments": after.canary_segments,
            },
        )
        if not is_accepted:
            return None
        insert_all(connection, _ADD_SEGMENTS, (segment_row(it) for it in segments))
        return after

    @write
    @staticmethod
    def reject(connection: Connection, lease: BatchLease, after: Batch) -> bool:
        """validating -> failed with `after.errors`. False when the lease was lost."""
        return write_status(
            connection,
            _REJECT,
            after,
            expected=lease.batch.status,
            parameters={
                "held_token": lease.token,
                "new_errors": dump_errors(after.errors),
                "new_model": after.model,
                "new_report_blob_key": after.report_blob_key,
            },
        )

    @write
    @staticmethod
    def publish(
        connection: Connection,
        lease: BatchLease,
        after: Batch,
        *,
        files: Sequence[File],
        pieces: Mapping[str, Sequence[str]] | None = None,
    ) -> bool:
        """Writes the final status, stamps, tally, file ids, files and the project's usage. False: lease lost.

        Args:
            pieces: for each file's blob that is made of other blobs, the keys of those in order.
        """
        is_published = write_status(
            connection,
            _PUBLISH,
            after,
            expected=lease.batch.status,
            parameters={
                "held_token": lease.token,
                "new_output_file_id": after.output_file_id,
                "new_error_file_id": after.error_file_id,
                **tally_parameters(after.tally),
            },
        )
        if not is_published:
            return False
        if files:
            connection.execute(_ADD_FILES, [row_of(file) for file in files])
            projects.add_bytes(connection, after.project_id, sum(it.size_bytes for it in files))
        usage.count(connection, after)
        connection.execute(_DELETE_SEGMENTS, {"of_batch_id": after.id})
        connection.execute(_DELETE_LINE_REPORTS, {"of_batch_id": after.id})
        if lease.is_sliced:
            connection.execute(_DELETE_SLICES, {"of_batch_id": after.id})
        for whole, keys in (pieces or {}).items():
            insert_all(connection, _ADD_PIECES, ({"blob_key": key, "of_blob_key": whole} for key in keys))
        return True


def _refusal(connection: Connection, after: Batch, limits: Limits) -> LineError | None:
    limits = projects.limits_of(connection, after.project_id, limits)
    if not limits.open_lines and not limits.enqueued_tokens:
        return None
    projects.locked_bytes(connection, after.project_id)
    return refusal_to_accept(
        limits,
        projects.open_of(connection, after.project_id),
        project_id=after.project_id,
        total=after.total,
        model=after.model,
        tokens=after.enqueued_tokens,
        enqueued=projects.enqueued_tokens(connection, after.project_id).get(after.model, 0),
    )


def _fence(lease: BatchLease) -> dict[str, str | int]:
    return {"of_batch_id": lease.batch.id, "held_token": lease.token}
