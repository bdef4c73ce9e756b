"""What the database says exists, for the comparison with the bytes on disk (backup and check).

Everything here only reads, and every answer is of the one state that the connection sees.
"""

from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, exists, func, or_, select, text
from sqlalchemy.exc import DBAPIError

from nightmill.core.batch import TERMINAL, Batch, Status
from nightmill.core.file import File, UploadPart, UploadStatus
from nightmill.core.segment import Segment, SegmentResult
from nightmill.core.slice import JoinedSlice
from nightmill.ids import BatchId, FileId
from nightmill.store import batch_counts, slices
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.blob_references import BlobReferences
from nightmill.store.compatibility import schema_refusal
from nightmill.store.files import FILE_COLUMNS, as_file
from nightmill.store.schema import (
    DONE,
    HAS_REPORT,
    TALLY_COLUMNS,
    batch,
    file,
    idempotency,
    segment,
    upload,
    upload_part,
)
from nightmill.store.tallies import load_parts, tally_of
from nightmill.store.uploads import PART_COLUMNS

_MOST_PROBLEMS: Final = 20
_TERMINAL = tuple(status.value for status in TERMINAL)
_is_live = file.c.deleted_at.is_(None)

_LIVE_FILES = select(*FILE_COLUMNS).where(_is_live).order_by(file.c.sequence)
_ONE_FILE = select(*FILE_COLUMNS).where(_is_live, file.c.id == bindparam("file_id"))
_ANY_FILE = select(file.c.id).where(file.c.id == bindparam("file_id"))
_PENDING_PARTS = (
    select(*PART_COLUMNS)
    .join(upload, upload.c.id == upload_part.c.upload_id)
    .where(upload.c.status == UploadStatus.PENDING.value, upload_part.c.blob_key.is_not(None))
    .order_by(upload_part.c.sequence)
)
_BATCHES = select(*BATCH_COLUMNS, batch.c.index_blob_key, batch.c.segments_left).order_by(batch.c.sequence)
_UNFINISHED = _BATCHES.where(batch.c.status.not_in(_TERMINAL))
_FINISHED = _BATCHES.where(batch.c.status.in_(_TERMINAL))
_SEGMENTS = (
    select(
        segment.c.number,
        segment.c.first,
        segment.c.count.label("line_count"),
        segment.c.token,
        segment.c.pinned,
        (segment.c.state == DONE).label("is_done"),
        *(segment.c[name] for name in TALLY_COLUMNS),
    )
    .where(segment.c.batch_id == bindparam("of_batch_id"))
    .order_by(segment.c.number)
)
_LEFTOVER_SEGMENTS = (
    select(segment.c.batch_id, func.count())
    .join(batch, batch.c.id == segment.c.batch_id)
    .where(batch.c.status.in_(_TERMINAL))
    .group_by(segment.c.batch_id)
)
_DANGLING = select(idempotency).where(
    or_(
        and_(idempotency.c.operation == "add_file", ~exists().where(file.c.id == idempotency.c.object_id)),
        and_(
            idempotency.c.operation == "create_batch", ~exists().where(batch.c.id == idempotency.c.object_id)
        ),
    )
)
_REPORTS = select(batch.c.report_blob_key).where(text(HAS_REPORT)).order_by(batch.c.sequence)
_STATUSES = select(batch.c.id, batch.c.status).where(batch.c.id.in_(bindparam("batch_ids", expanding=True)))


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch with two columns that only the roles use."""

    batch: Batch
    index_blob_key: str | None
    segments_left: int


@dataclass(frozen=True, slots=True)
class IdempotencyRow:
    """A row that says which object a client's key made first."""

    project_id: str
    operation: str
    key: str
    object_id: str


class Inventory:
    """Each method is one query; iterators read rows as they are consumed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def schema_refusal(self) -> str | None:
        """Why this version of nightmill can't work with the database; None when it can."""
        try:
            return schema_refusal(self._connection)
        except DBAPIError:
            return "it has no schema"

    def problems(self) -> Sequence[str]:
        """What SQLite itself finds wrong with the file, at most twenty problems of each kind."""
        try:
            found = (
                self._connection.exec_driver_sql(f"PRAGMA integrity_check({_MOST_PROBLEMS})").scalars().all()
            )
            if found != ["ok"]:
                return [str(problem) for problem in found]
            broken = self._connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(_MOST_PROBLEMS)
        except DBAPIError as error:
            return [f"it can't be read: {error.orig}"]
        return [
            f"row {row} of {table} names a row of {parent} that is not there"
            for table, row, parent, _ in broken
        ]

    def live_files(self) -> Iterator[File]:
        for row in self._connection.execute(_LIVE_FILES):
            yield as_file(row)

    def live_file(self, file_id: FileId) -> File | None:
        row = self._connection.execute(_ONE_FILE, {"file_id": file_id}).one_or_none()
        return None if row is None else as_file(row)

    def knows_file(self, file_id: FileId) -> bool:
        """Deleted files are known too."""
        return self._connection.execute(_ANY_FILE, {"file_id": file_id}).first() is not None

    def pending_parts(self) -> Iterator[UploadPart]:
        """Of uploads that can still be completed."""
        for row in self._connection.execute(_PENDING_PARTS):
            yield UploadPart(*row)

    def unfinished_batches(self) -> Iterator[StoredBatch]:
        return self._batches(_UNFINISHED)

    def finished_batches(self) -> Iterator[StoredBatch]:
        return self._batches(_FINISHED)

    def validation_reports(self) -> Iterator[str]:
        """The keys of all validation reports."""
        yield from self._connection.execute(_REPORTS).scalars()

    def segments(self, batch_id: BatchId) -> Iterator[SegmentResult]:
        """In order of number, leased or not."""
        for row in self._connection.execute(_SEGMENTS, {"of_batch_id": batch_id}):
            yield SegmentResult(
                segment=Segment(batch_id, row.number, row.first, row.line_count),
                token=row.token,
                pinned=load_parts(row.pinned),
                tally=tally_of(row[6:]),
                is_done=bool(row.is_done),
            )

    def joined_slices(self) -> Iterator[JoinedSlice]:
        """Slices that are done, of batches that aren't published yet."""
        for row in self._connection.execute(slices.JOINED):
            yield slices.as_joined(row)

    def leftover_segments(self) -> Sequence[tuple[BatchId, int]]:
        """Finished batches that have segments, and how many."""
        return [
            (BatchId(batch_id), count) for batch_id, count in self._connection.execute(_LEFTOVER_SEGMENTS)
        ]

    def wrongly_counted(self) -> int:
        """How many of the kept counts of batches are wrong, and how many texts of batches."""
        return batch_counts.wrong_counts(self._connection) + batch_counts.wrong_texts(self._connection)

    def dangling_idempotency(self) -> Sequence[IdempotencyRow]:
        """Rows whose object does not exist and was never made."""
        return [
            IdempotencyRow(row.project_id, row.operation, row.key, row.object_id)
            for row in self._connection.execute(_DANGLING)
        ]

    def referenced(self, keys: Collection[str]) -> Set[str]:
        """Those of `keys` that any row references."""
        return BlobReferences.referenced(self._connection, keys)

    def statuses(self, batch_ids: Collection[BatchId]) -> dict[BatchId, Status]:
        """Unknown ids are left out."""
        rows = self._connection.execute(_STATUSES, {"batch_ids": list(batch_ids)})
        return {BatchId(batch_id): Status(status) for batch_id, status in rows}

    def _batches(self, query: Select[Any]) -> Iterator[StoredBatch]:
        for row in self._connection.execute(query):
            yield StoredBatch(as_batch(row), row.index_blob_key, row.segments_left)
