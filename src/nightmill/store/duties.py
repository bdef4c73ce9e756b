"""Duties: one role at a time moves a batch on from `validating`, `finalizing` or `cancelling`.

A duty is leased like a segment, with a token that grows by one each time. It ends when the batch's status
moves, so intake that works on a batch somebody cancelled meanwhile can neither accept nor keep it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, delete, exists, insert, or_, select, text, update

from nightmill.core.batch import Batch, Event, LineError, Status
from nightmill.core.file import File
from nightmill.core.limits import Limits, refusal_to_accept
from nightmill.core.segment import Segment
from nightmill.ids import WorkerId
from nightmill.store import projects, schema, usage
from nightmill.store.batches import BATCH_COLUMNS, HOLDS_DUTY, as_batch, dump_errors, move, moving
from nightmill.store.clock import now
from nightmill.store.files import file_row
from nightmill.store.protocol import Duty
from nightmill.store.schema import DONE, LEASED, WAITING, batch, file, piece, segment, slice_
from nightmill.store.tallies import set_tally, tally_parameters

# A batch of ten million lines has 20,000 segments; no one command may take longer than its timeout.
_ROWS_AT_ONCE = 1_000
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
    .order_by(batch.c.sequence)
    .limit(1)
    .with_for_update(skip_locked=True, of=batch)
)
# Who held an unfinished segment can add nothing to it from here on, however late it wakes.
_VOID_LEASES = (
    update(segment)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.state != DONE,
        segment.c.token > 0,
        or_(segment.c.state == WAITING, segment.c.lease_expires_at <= now()),
    )
    .values(state=WAITING, token=segment.c.token + 1, worker_id=None, lease_expires_at=None)
)
_LIVE_LEASE = select(segment.c.number).where(
    segment.c.batch_id == bindparam("of_batch_id"), segment.c.state == LEASED
)
_GRANT = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(
        lease_token=batch.c.lease_token + 1,
        lease_worker_id=bindparam("worker_id"),
        lease_expires_at=now() + bindparam("ttl_s"),
    )
    .returning(
        *BATCH_COLUMNS,
        batch.c.index_blob_key,
        batch.c.lease_token,
        exists().where(slice_.c.batch_id == batch.c.id).label("is_sliced"),
    )
)
_HELD = (
    batch.c.id == bindparam("of_batch_id"),
    batch.c.status == bindparam("in_status"),
    *HOLDS_DUTY,
)
_KEEP = update(batch).where(*_HELD).values(lease_expires_at=now() + bindparam("ttl_s"))
_RELEASE = update(batch).where(*_HELD).values(lease_worker_id=None, lease_expires_at=None)
_RELEASE_ALL = (
    update(batch)
    .where(text(schema.IS_LEASABLE), batch.c.lease_worker_id.is_not(None))
    .values(lease_worker_id=None, lease_expires_at=None)
)
_RELEASE_OF = _RELEASE_ALL.where(batch.c.lease_worker_id == bindparam("holder"))

_ACCEPT = moving(
    fenced_by=HOLDS_DUTY,
    model=bindparam("new_model"),
    total=bindparam("new_total"),
    index_blob_key=bindparam("new_index_blob_key"),
    segments_left=bindparam("new_segments_left"),
    enqueued_tokens=bindparam("new_enqueued_tokens"),
)
_REJECT = moving(fenced_by=HOLDS_DUTY, errors=bindparam("new_errors"), model=bindparam("new_model"))
_PUBLISH = moving(
    fenced_by=HOLDS_DUTY,
    output_file_id=bindparam("new_output_file_id"),
    error_file_id=bindparam("new_error_file_id"),
    segments_left=0,
    usage_day=usage.TODAY,
    **set_tally(),
)
_ADD_SEGMENTS = insert(segment)
_ADD_FILES = insert(file)
_ADD_PIECES = insert(piece)
_DROP_SLICES = delete(slice_).where(slice_.c.batch_id == bindparam("of_batch_id"))
_DROP_SEGMENTS = delete(segment).where(segment.c.batch_id == bindparam("of_batch_id"))


def lease_duty(
    connection: Connection, statuses: Sequence[Status], worker_id: WorkerId, ttl_s: float
) -> Duty | None:
    candidate = connection.execute(
        _CANDIDATE, {"statuses": [status.value for status in statuses]}
    ).scalar_one_or_none()
    if candidate is None:
        return None
    connection.execute(_VOID_LEASES, {"of_batch_id": candidate})
    if connection.execute(_LIVE_LEASE, {"of_batch_id": candidate}).first() is not None:
        return None  # on Postgres a holder may have beaten since the candidate was read
    row = connection.execute(_GRANT, {"of_batch_id": candidate, "worker_id": worker_id, "ttl_s": ttl_s}).one()
    return Duty(as_batch(row), row.index_blob_key, row.lease_token, ttl_s, bool(row.is_sliced))


def keep_duty(connection: Connection, duty: Duty) -> bool:
    return connection.execute(_KEEP, {**_fence(duty), "ttl_s": duty.ttl_s}).rowcount == 1


def release_duty(connection: Connection, duty: Duty) -> bool:
    return connection.execute(_RELEASE, _fence(duty)).rowcount == 1


def release_all_duties(connection: Connection) -> int:
    return connection.execute(_RELEASE_ALL).rowcount


def release_duties_of(connection: Connection, worker_id: WorkerId) -> int:
    return connection.execute(_RELEASE_OF, {"holder": worker_id}).rowcount


def accept_batch(
    connection: Connection,
    duty: Duty,
    after: Batch,
    index_blob_key: str,
    segments: Sequence[Segment],
    limits: Limits,
) -> Batch | None:
    if (refusal := _refusal(connection, after, limits)) is not None:
        refused = replace(
            duty.batch.after(Event.REJECTED, now=after.newest_stamp), model=after.model, errors=(refusal,)
        )
        return refused if reject_batch(connection, duty, refused) else None
    is_accepted = move(
        connection,
        _ACCEPT,
        after,
        expected=duty.batch.status,
        held_token=duty.token,
        new_model=after.model,
        new_total=after.total,
        new_index_blob_key=index_blob_key,
        new_segments_left=len(segments),
        new_enqueued_tokens=after.enqueued_tokens,
    )
    if is_accepted:
        for first in range(0, len(segments), _ROWS_AT_ONCE):
            rows = [_segment_row(it) for it in segments[first : first + _ROWS_AT_ONCE]]
            connection.execute(_ADD_SEGMENTS, rows)
    return after if is_accepted else None


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


def reject_batch(connection: Connection, duty: Duty, after: Batch) -> bool:
    return move(
        connection,
        _REJECT,
        after,
        expected=duty.batch.status,
        held_token=duty.token,
        new_errors=dump_errors(after.errors),
        new_model=after.model,
    )


def publish_batch(
    connection: Connection,
    duty: Duty,
    after: Batch,
    files: Sequence[File],
    pieces: Mapping[str, Sequence[str]] | None,
) -> bool:
    is_published = move(
        connection,
        _PUBLISH,
        after,
        expected=duty.batch.status,
        held_token=duty.token,
        new_output_file_id=after.output_file_id,
        new_error_file_id=after.error_file_id,
        **tally_parameters(after.tally),
    )
    if not is_published:
        return False
    if files:
        connection.execute(_ADD_FILES, [file_row(it) for it in files])
        projects.keep_bytes(connection, after.project_id, sum(it.size_bytes for it in files))
    usage.count(connection, after)
    connection.execute(_DROP_SEGMENTS, {"of_batch_id": after.id})
    if duty.is_sliced:
        connection.execute(_DROP_SLICES, {"of_batch_id": after.id})
    for whole, keys in (pieces or {}).items():
        for first in range(0, len(keys), _ROWS_AT_ONCE):
            rows = [{"blob_key": key, "of_blob_key": whole} for key in keys[first : first + _ROWS_AT_ONCE]]
            connection.execute(_ADD_PIECES, rows)
    return True


def _fence(duty: Duty) -> dict[str, str | int]:
    return {
        "of_batch_id": duty.batch.id,
        "in_status": duty.batch.status.value,
        "held_token": duty.token,
    }


def _segment_row(it: Segment) -> dict[str, str | int]:
    return {
        "batch_id": it.batch_id,
        "number": it.number,
        "first": it.first,
        "count": it.count,
        "state": "waiting",
        "pinned": "[]",
    }
