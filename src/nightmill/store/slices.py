"""Slices: several finalizers join one huge batch, each of them a run of its segments at a time.

A slice is leased like a segment, with a token that grows by one each time. While one of a batch is not done,
nobody gets the duty of the batch; when all are, whoever gets it publishes what they made.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, text, update

from nightmill.core.slice import JoinedPiece, JoinedSlice, Slice
from nightmill.ids import BatchId, WorkerId
from nightmill.store import duties, schema
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.clock import now
from nightmill.store.protocol import Duty, SliceDuty
from nightmill.store.schema import DONE, LEASED, TALLY_COLUMNS, WAITING, batch, slice_
from nightmill.store.tallies import set_tally, tally_of, tally_parameters

_ROWS_AT_ONCE: Final = 1_000
_SEGMENTS = slice_.c.count.label("segments")  # a row has a `count` of its own
_WAITS = {"state": WAITING, "worker_id": None, "lease_expires_at": None}
_ADD = insert(slice_)
_NEXT = (
    select(slice_.c.batch_id, slice_.c.number)
    .where(text(schema.IS_OPEN_SLICE), or_(slice_.c.state == WAITING, slice_.c.lease_expires_at <= now()))
    .order_by(slice_.c.batch_id, slice_.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_of_slice = (slice_.c.batch_id == bindparam("of_batch_id"), slice_.c.number == bindparam("of_number"))
_LEASE = (
    update(slice_)
    .where(*_of_slice)
    .values(
        state=LEASED,
        token=slice_.c.token + 1,
        worker_id=bindparam("new_worker_id"),
        lease_expires_at=now() + bindparam("ttl_s"),
    )
    .returning(slice_.c.batch_id, slice_.c.number, slice_.c.first, _SEGMENTS, slice_.c.token)
)
_OWNER = select(*BATCH_COLUMNS, batch.c.index_blob_key).where(batch.c.id == bindparam("of_batch_id"))
_held = (*_of_slice, slice_.c.token == bindparam("of_token"), slice_.c.state == LEASED)
_KEEP = update(slice_).where(*_held).values(lease_expires_at=now() + bindparam("ttl_s"))
_RELEASE = update(slice_).where(*_held).values(**_WAITS)
_COMPLETE = (
    update(slice_)
    .where(*_held)
    .values(
        state=DONE,
        worker_id=None,
        lease_expires_at=None,
        output_blob_key=bindparam("new_output_blob_key"),
        output_bytes=bindparam("new_output_bytes"),
        error_blob_key=bindparam("new_error_blob_key"),
        error_bytes=bindparam("new_error_bytes"),
        lines=bindparam("new_lines"),
        missing=bindparam("new_missing"),
        **set_tally(),
    )
)
JOINED = (
    select(
        slice_.c.batch_id,
        slice_.c.number,
        slice_.c.first,
        _SEGMENTS,
        slice_.c.output_blob_key,
        slice_.c.output_bytes,
        slice_.c.error_blob_key,
        slice_.c.error_bytes,
        slice_.c.lines,
        slice_.c.missing,
        *(slice_.c[name] for name in TALLY_COLUMNS),
    )
    .where(slice_.c.state == DONE)
    .order_by(slice_.c.batch_id, slice_.c.number)
)
_JOINED_OF = JOINED.where(slice_.c.batch_id == bindparam("of_batch_id"))
_DROP = delete(slice_).where(slice_.c.batch_id == bindparam("of_batch_id"))
_RELEASE_ALL = update(slice_).where(text(schema.IS_OPEN_SLICE), slice_.c.state == LEASED).values(**_WAITS)
_RELEASE_OF = _RELEASE_ALL.where(slice_.c.worker_id == bindparam("holder"))


def cut_slices(connection: Connection, duty: Duty, cut: Sequence[Slice]) -> bool:
    if not duties.release_duty(connection, duty):
        return False
    for first in range(0, len(cut), _ROWS_AT_ONCE):
        rows = [_row(it) for it in cut[first : first + _ROWS_AT_ONCE]]
        connection.execute(_ADD, rows)
    return True


def lease_slice(connection: Connection, worker_id: WorkerId, ttl_s: float) -> SliceDuty | None:
    found = connection.execute(_NEXT).one_or_none()
    if found is None:
        return None
    given = {"of_batch_id": found.batch_id, "of_number": found.number}
    *place, token = connection.execute(_LEASE, {**given, "new_worker_id": worker_id, "ttl_s": ttl_s}).one()
    owner = connection.execute(_OWNER, {"of_batch_id": found.batch_id}).one()
    return SliceDuty(as_batch(owner), owner.index_blob_key, Slice(*place), token, ttl_s)


def keep_slice(connection: Connection, duty: SliceDuty) -> bool:
    return connection.execute(_KEEP, {**_fence(duty), "ttl_s": duty.ttl_s}).rowcount == 1


def release_slice(connection: Connection, duty: SliceDuty) -> None:
    connection.execute(_RELEASE, _fence(duty))


def complete_slice(connection: Connection, duty: SliceDuty, joined: JoinedSlice) -> bool:
    if not joined.lines or joined.tally.answered + joined.missing != joined.lines:
        name = f"{joined.slice.batch_id} slice {joined.slice.number}"
        counted = f"{joined.tally.answered} answered and {joined.missing} missing"
        raise ValueError(f"{name} has {joined.lines} lines, but {counted} are reported")
    output, error = joined.output, joined.error
    given: dict[str, Any] = {
        "new_output_blob_key": output.key if output else None,
        "new_output_bytes": output.size_bytes if output else 0,
        "new_error_blob_key": error.key if error else None,
        "new_error_bytes": error.size_bytes if error else 0,
        "new_lines": joined.lines,
        "new_missing": joined.missing,
        **tally_parameters(joined.tally),
    }
    return connection.execute(_COMPLETE, {**_fence(duty), **given}).rowcount == 1


def joined_slices(connection: Connection, batch_id: BatchId) -> Sequence[JoinedSlice]:
    return [as_joined(row) for row in connection.execute(_JOINED_OF, {"of_batch_id": batch_id})]


def as_joined(row: Any) -> JoinedSlice:
    return JoinedSlice(
        slice=Slice(row.batch_id, row.number, row.first, row.segments),
        output=_piece(row.output_blob_key, row.output_bytes),
        error=_piece(row.error_blob_key, row.error_bytes),
        lines=row.lines,
        missing=row.missing,
        tally=tally_of(row[-len(TALLY_COLUMNS) :]),
    )


def drop_slices(connection: Connection, batch_id: BatchId) -> None:
    connection.execute(_DROP, {"of_batch_id": batch_id})


def release_all_slices(connection: Connection) -> int:
    return connection.execute(_RELEASE_ALL).rowcount


def release_slices_of(connection: Connection, worker_id: WorkerId) -> int:
    return connection.execute(_RELEASE_OF, {"holder": worker_id}).rowcount


def _row(it: Slice) -> dict[str, str | int]:
    return {
        "batch_id": it.batch_id,
        "number": it.number,
        "first": it.first,
        "count": it.count,
        "state": "waiting",
    }


def _fence(duty: SliceDuty) -> dict[str, str | int]:
    return {
        "of_batch_id": duty.slice.batch_id,
        "of_number": duty.slice.number,
        "of_token": duty.token,
    }


def _piece(key: str | None, size_bytes: int) -> JoinedPiece | None:
    return None if key is None else JoinedPiece(key, size_bytes)
