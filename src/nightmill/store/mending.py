"""Puts rows right that say what the disk does not hold, for `nightmill check --repair`.

Promise: all or nothing; one transaction holds every change of one `mending`. Only for whoever holds the data
folder's lock: no role may be at work. Not its duty: knowing what is wrong.
"""

import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, select, update
from sqlalchemy.exc import DBAPIError

from nightmill.core.batch import Status, Tally
from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId, FileId, PartId
from nightmill.store import duties, projects, segments, slices
from nightmill.store.clock import now, stamp
from nightmill.store.inventory import IdempotencyRow, named_among
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
_LEAVE_PIECES = (
    update(piece)
    .where(
        piece.c.of_blob_key.in_(select(file.c.blob_key).where(file.c.id == bindparam("of_file_id"))),
    )
    .values(of_blob_key=None)
)
_FORGET_PART = delete(upload_part).where(upload_part.c.id == bindparam("of_part_id"))
_FORGET_KEY = delete(idempotency).where(
    idempotency.c.project_id == bindparam("of_project_id"),
    idempotency.c.operation == bindparam("of_operation"),
    idempotency.c.key == bindparam("of_key"),
)
_DROP_SEGMENTS = delete(segment).where(segment.c.batch_id == bindparam("of_batch_id"))
_of_segment = (segment.c.batch_id == bindparam("of_batch_id"), segment.c.number == bindparam("of_number"))
# A token of its own: whoever held the segment, however late it wakes, can add nothing to it.
_PIN = (
    update(segment)
    .where(*_of_segment)
    .values(
        state=case((segment.c.count == bindparam("answered"), DONE), else_=WAITING),
        token=segment.c.token + 1,
        worker_id=None,
        lease_expires_at=None,
        pinned=bindparam("new_pinned"),
        **set_tally(),
    )
)


def _sum_over_segments(column: Any) -> Any:
    return (
        select(func.coalesce(func.sum(column), 0)).where(segment.c.batch_id == batch.c.id).scalar_subquery()
    )


_COUNT_AGAIN = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(
        segments_left=_sum_over_segments(case((segment.c.state == DONE, 0), else_=1)),
        **{name: _sum_over_segments(segment.c[name]) for name in TALLY_COLUMNS},
    )
)
_SEND_AGAIN = (
    update(batch)
    .where(
        batch.c.id == bindparam("of_batch_id"),
        batch.c.status == Status.FINALIZING.value,
        batch.c.expires_at > now(),
        batch.c.segments_left > 0,
    )
    .values(status=Status.IN_PROGRESS.value, finalizing_at=None, lease_worker_id=None, lease_expires_at=None)
)


class Mender:
    """See the module. Each method is one kind of wrong row."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def take_back_leases(self) -> None:
        """Whoever held a segment or a duty, however late it wakes, can report and publish nothing more."""
        segments.release_all_segments(self._connection)
        duties.release_all_duties(self._connection)
        slices.release_all_slices(self._connection)

    def delete_file(self, file_id: FileId) -> None:
        """A file whose bytes are gone; cursors that name it stay good. What is left of its pieces may go."""
        self._connection.execute(_LEAVE_PIECES, {"of_file_id": file_id})
        self._connection.execute(_DELETE_FILE, {"of_file_id": file_id})
        projects.count_bytes_again(self._connection)

    def forget_part(self, part_id: PartId) -> None:
        """A part of an open upload whose bytes are gone: its client is told that there is no such part."""
        self._connection.execute(_FORGET_PART, {"of_part_id": part_id})

    def forget_key(self, row: IdempotencyRow) -> None:
        given = {"of_project_id": row.project_id, "of_operation": row.operation, "of_key": row.key}
        self._connection.execute(_FORGET_KEY, given)

    def drop_segments(self, batch_id: BatchId) -> None:
        self._connection.execute(_DROP_SEGMENTS, {"of_batch_id": batch_id})

    def pin(self, it: Segment, pinned: Sequence[PinnedPart], tally: Tally) -> None:
        """What the disk holds of the segment's answers is what counts; the other lines are sent again."""
        given = {"of_batch_id": it.batch_id, "of_number": it.number, "answered": tally.answered}
        self._connection.execute(_PIN, {**given, "new_pinned": dump_parts(pinned), **tally_parameters(tally)})

    def drop_slices(self, batch_id: BatchId) -> None:
        """The batch is joined anew; what was joined of it is nobody's."""
        slices.drop_slices(self._connection, batch_id)

    def count_again(self, batch_id: BatchId) -> None:
        """The batch counts what its segments count. A batch that was to be finalized with every line answered
        and now lacks some goes back to work while its window lasts; else they would count as expired."""
        self.drop_slices(batch_id)  # they hold the answers that were counted before
        self._connection.execute(_COUNT_AGAIN, {"of_batch_id": batch_id})
        self._connection.execute(_SEND_AGAIN, {"of_batch_id": batch_id})

    def named_among(self, keys: Collection[str]) -> set[str]:
        return named_among(self._connection, keys)


@contextmanager
def mending(url: str) -> Generator[Mender]:
    engine = sqlite_engine(database_file(url), begin="BEGIN IMMEDIATE", clock=time.time)
    try:
        with engine.begin() as connection:
            yield Mender(connection)
    except DBAPIError as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()
