"""Corrects rows that disagree with the bytes on disk, for `nightmill check --repair`.

One transaction holds every change of one `repairing` block: all of them, or none. Only for a process that
holds the data folder's lock, so that no role is at work. What is wrong is found elsewhere (`nightmill
check`).
"""

import time
from collections.abc import Collection, Generator, Sequence, Set
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, select, update
from sqlalchemy.exc import DBAPIError

from nightmill.core.batch import Status, Tally
from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId, FileId, PartId
from nightmill.store import batch_counts, batches, leases, projects, segments, slices
from nightmill.store.blob_references import BlobReferences
from nightmill.store.clock import now, stamp
from nightmill.store.inventory import IdempotencyRow
from nightmill.store.schema import (
    DONE,
    TALLY_COLUMNS,
    WAITING,
    batch,
    file,
    idempotency,
    piece,
    segment,
    upload_part,
)
from nightmill.store.snapshot import database_file
from nightmill.store.sqlite import sqlite_engine, sqlite_failure
from nightmill.store.tallies import dump_parts, set_tally, tally_parameters

_DELETE_FILE = (
    update(file)
    .where(file.c.id == bindparam("of_file_id"), file.c.deleted_at.is_(None))
    .values(deleted_at=stamp(), blob_key=None)
)
_DETACH_PIECES = (
    update(piece)
    .where(
        piece.c.of_blob_key.in_(select(file.c.blob_key).where(file.c.id == bindparam("of_file_id"))),
    )
    .values(of_blob_key=None)
)
_DELETE_PART = delete(upload_part).where(upload_part.c.id == bindparam("of_part_id"))
_DELETE_KEY = delete(idempotency).where(
    idempotency.c.project_id == bindparam("of_project_id"),
    idempotency.c.operation == bindparam("of_operation"),
    idempotency.c.key == bindparam("of_key"),
)
_DELETE_SEGMENTS = delete(segment).where(segment.c.batch_id == bindparam("of_batch_id"))
_of_segment = (segment.c.batch_id == bindparam("of_batch_id"), segment.c.number == bindparam("of_number"))
# A higher token: a late lease holder of the segment can add nothing to it.
_PIN = (
    update(segment)
    .where(*_of_segment)
    .values(
        **{
            **segments.LEASES.released,
            "state": case((segment.c.count == bindparam("answered"), DONE), else_=WAITING),
        },
        token=segment.c.token + 1,
        pinned=bindparam("new_pinned"),
        **set_tally(),
    )
)


def _sum_over_segments(column: Any) -> Any:
    return (
        select(func.coalesce(func.sum(column), 0)).where(segment.c.batch_id == batch.c.id).scalar_subquery()
    )


_RECOUNT = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(
        segments_left=_sum_over_segments(case((segment.c.state == DONE, 0), else_=1)),
        **{
            name: _sum_over_segments(segment.c[name]) + (batch.c.invalid if name == "failed" else 0)
            for name in TALLY_COLUMNS
        },
    )
)
_RETURN_TO_WORK = (
    update(batch)
    .where(
        batch.c.id == bindparam("of_batch_id"),
        batch.c.status == Status.FINALIZING.value,
        batch.c.expires_at > now(),
        batch.c.segments_left > 0,
    )
    .values(status=Status.IN_PROGRESS.value, finalizing_at=None, **batches.LEASES.released)
)


class RowRepair:
    """Each method corrects one kind of wrong row."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def release_leases(self) -> None:
        """A late lease holder of a segment, batch or slice can report and publish nothing more."""
        leases.release_all_leases(self._connection)

    def delete_file(self, file_id: FileId) -> None:
        """A file whose bytes are gone. Cursors that name it stay valid; its other pieces become unused."""
        self._connection.execute(_DETACH_PIECES, {"of_file_id": file_id})
        self._connection.execute(_DELETE_FILE, {"of_file_id": file_id})
        projects.recount_bytes(self._connection)

    def delete_part(self, part_id: PartId) -> None:
        """A part of an open upload whose bytes are gone: its client gets the answer for an unknown part."""
        self._connection.execute(_DELETE_PART, {"of_part_id": part_id})

    def delete_idempotency(self, row: IdempotencyRow) -> None:
        given = {"of_project_id": row.project_id, "of_operation": row.operation, "of_key": row.key}
        self._connection.execute(_DELETE_KEY, given)

    def delete_segments(self, batch_id: BatchId) -> None:
        self._connection.execute(_DELETE_SEGMENTS, {"of_batch_id": batch_id})

    def pin(self, it: Segment, pinned: Sequence[PinnedPart], tally: Tally) -> None:
        """Only the answers of the segment that the disk holds count; the other lines are sent again."""
        given = {"of_batch_id": it.batch_id, "of_number": it.number, "answered": tally.answered}
        self._connection.execute(_PIN, {**given, "new_pinned": dump_parts(pinned), **tally_parameters(tally)})

    def delete_slices(self, batch_id: BatchId) -> None:
        """The batch is joined anew; the pieces that were joined become unreferenced."""
        slices.delete_slices(self._connection, batch_id)

    def recount(self, batch_id: BatchId) -> None:
        """Sets the batch's counts to the sums over its segments.

        A batch in `finalizing` that now lacks answers goes back to `in_progress` before its deadline;
        otherwise the lines without answer would count as expired.
        """
        self.delete_slices(batch_id)  # they hold the answers that were counted before
        self._connection.execute(_RECOUNT, {"of_batch_id": batch_id})
        self._connection.execute(_RETURN_TO_WORK, {"of_batch_id": batch_id})

    def count_batches(self) -> None:
        """Makes the kept counts of batches, and the texts that a search looks at, anew."""
        batch_counts.recount(self._connection)

    def referenced(self, keys: Collection[str]) -> Set[str]:
        """Those of `keys` that any row references."""
        return BlobReferences.referenced(self._connection, keys)


@contextmanager
def repairing(url: str) -> Generator[RowRepair]:
    """A transaction of repairs: committed at the end of the block, undone by an exception."""
    engine = sqlite_engine(database_file(url), begin="BEGIN IMMEDIATE", clock=time.time)
    try:
        with engine.begin() as connection:
            yield RowRepair(connection)
    except DBAPIError as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()
