"""Slices: several finalizers join one huge batch, each of them a run of its segments at a time.

A slice is leased like a segment (see `leased_table`). While one slice of a batch is not done, the batch
itself can't be leased; once all are done, the next lease holder of the batch publishes what the slices made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, text, update

from nightmill.core.batch import Batch
from nightmill.core.slice import JoinedPiece, JoinedSlice, Slice
from nightmill.ids import BatchId, WorkerId
from nightmill.store import schema
from nightmill.store.batch_leases import BatchLease, BatchLeases
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.clock import now
from nightmill.store.leased_table import LeasedTable
from nightmill.store.rows import insert_all, row_of
from nightmill.store.schema import DONE, LEASED, TALLY_COLUMNS, WAITING, batch, slice_
from nightmill.store.tallies import set_tally, tally_of, tally_parameters
from nightmill.store.verbs import Verbs, read, write

LEASES = LeasedTable(
    table=slice_,
    row=(slice_.c.batch_id == bindparam("of_batch_id"), slice_.c.number == bindparam("of_number")),
    all_leased=(text(schema.IS_OPEN_SLICE), slice_.c.state == LEASED),
)
_SEGMENTS = slice_.c.count.label("segments")  # a row object has a method named `count`
_ADD = insert(slice_)
_NEXT = (
    select(slice_.c.batch_id, slice_.c.number)
    .where(text(schema.IS_OPEN_SLICE), or_(slice_.c.state == WAITING, slice_.c.lease_expires_at <= now()))
    .order_by(slice_.c.batch_id, slice_.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_LEASE = LEASES.lease().returning(
    slice_.c.batch_id, slice_.c.number, slice_.c.first, _SEGMENTS, slice_.c.token
)
_OWNER = select(*BATCH_COLUMNS, batch.c.index_blob_key).where(batch.c.id == bindparam("of_batch_id"))
_RENEW = LEASES.renew()
_RELEASE = LEASES.release()
_COMPLETE = (
    update(slice_)
    .where(*LEASES.fence)
    .values(
        **{**LEASES.released, "state": DONE},
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
_DELETE = delete(slice_).where(slice_.c.batch_id == bindparam("of_batch_id"))


@dataclass(frozen=True, slots=True)
class SliceLease:
    """The right to join one slice of a batch in `finalizing` or `cancelling`."""

    batch: Batch
    index_blob_key: str
    slice: Slice
    token: int
    ttl_s: float


class Slices(Verbs):
    """Slices of huge batches, from when a batch is cut until it is published."""

    @write
    @staticmethod
    def cut(connection: Connection, lease: BatchLease, slices: Sequence[Slice]) -> bool:
        """Ends the batch lease and makes slices that any finalizer may lease. False: the lease was lost."""
        if not BatchLeases.release(connection, lease):
            return False
        insert_all(connection, _ADD, (row_of(it) | {"state": "waiting"} for it in slices))
        return True

    @write
    @staticmethod
    def lease(connection: Connection, worker_id: WorkerId, *, ttl_s: float) -> SliceLease | None:
        """Leases a slice that waits or whose lease has expired; None when there is no such slice."""
        found = connection.execute(_NEXT).one_or_none()
        if found is None:
            return None
        given = {"of_batch_id": found.batch_id, "of_number": found.number}
        leased = connection.execute(_LEASE, {**given, "new_worker_id": worker_id, "ttl_s": ttl_s})
        *place, token = leased.one()
        owner = connection.execute(_OWNER, {"of_batch_id": found.batch_id}).one()
        return SliceLease(as_batch(owner), owner.index_blob_key, Slice(*place), token, ttl_s)

    @write
    @staticmethod
    def renew(connection: Connection, lease: SliceLease) -> bool:
        """False when the lease is lost."""
        return connection.execute(_RENEW, {**_fence(lease), "ttl_s": lease.ttl_s}).rowcount == 1

    @write
    @staticmethod
    def release(connection: Connection, lease: SliceLease) -> None:
        connection.execute(_RELEASE, _fence(lease))

    @write
    @staticmethod
    def complete(connection: Connection, lease: SliceLease, joined: JoinedSlice) -> bool:
        """Done. From here on the slice references its pieces. False when the token is no longer the newest.

        Raises:
            ValueError: the lines don't add up.
        """
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
        return connection.execute(_COMPLETE, {**_fence(lease), **given}).rowcount == 1

    @read
    @staticmethod
    def joined(connection: Connection, batch_id: BatchId) -> Sequence[JoinedSlice]:
        """The batch's slices that are done, in order of number."""
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


def delete_slices(connection: Connection, batch_id: BatchId) -> None:
    connection.execute(_DELETE, {"of_batch_id": batch_id})


def _fence(lease: SliceLease) -> dict[str, str | int]:
    return {
        "of_batch_id": lease.slice.batch_id,
        "of_number": lease.slice.number,
        "held_token": lease.token,
    }


def _piece(key: str | None, size_bytes: int) -> JoinedPiece | None:
    return None if key is None else JoinedPiece(key, size_bytes)
