"""Removes old rows: of ended batches whose files are gone, of deleted files, and of ended uploads.

Files themselves are deleted first (`delete_files`, or their expiry), then their bytes, then these
rows. A row stays while anything needs it: a legal hold, a live output or error file, bytes that are still to
be deleted, or a retry of the batch. What a removed batch used stays in the totals of `usage`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Text,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from nightmill.core.audit import NIGHTMILL, Actor, AuditAction
from nightmill.core.batch import TERMINAL
from nightmill.core.file import Purpose
from nightmill.core.legal_hold import HoldKind
from nightmill.store import audit, projects, schema
from nightmill.store.batch_watch_schema import (
    batch_event,
    batch_origin,
    batch_report,
    batch_sample,
    line_report,
)
from nightmill.store.blob_references import ended_at
from nightmill.store.clock import now, stamp
from nightmill.store.holds import held_ids, is_held_file
from nightmill.store.schema import (
    PENDING,
    batch,
    file,
    idempotency,
    segment,
    slice_,
    upload,
    upload_part,
)
from nightmill.store.verbs import Verbs, read, write

_AT_ONCE: Final = 500
"""Bounds how long one transaction takes."""

_cutoff = now() - bindparam("kept_s")
_ONLY_PROJECT: BindParameter[str | None] = bindparam("only_project", type_=Text())
_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_SEQUENCES: BindParameter[int] = bindparam("sequences", expanding=True)
_in_project = or_(_ONLY_PROJECT.is_(None), batch.c.project_id == _ONLY_PROJECT)
_IS_LIVE_FILE = file.c.deleted_at.is_(None)

_OLD_BATCHES = select(batch.c.id, batch.c.project_id).where(
    batch.c.status.in_([status.value for status in TERMINAL]),
    ended_at <= _cutoff,
    _in_project,
    batch.c.index_blob_key.is_(None),
    batch.c.id.not_in(held_ids(HoldKind.BATCH)),
    batch.c.project_id.not_in(held_ids(HoldKind.PROJECT)),
    ~exists().where(file.c.id == batch.c.output_file_id, _IS_LIVE_FILE),
    ~exists().where(file.c.id == batch.c.error_file_id, _IS_LIVE_FILE),
    ~exists().where(batch_origin.c.origin_id == batch.c.id),
)
_DELETE_BATCHES = (
    *(
        delete(table).where(table.c.batch_id.in_(_IDS))
        for table in (batch_event, batch_sample, batch_report, line_report, batch_origin, segment, slice_)
    ),
    delete(idempotency).where(idempotency.c.operation == "create_batch", idempotency.c.object_id.in_(_IDS)),
    delete(batch).where(batch.c.id.in_(_IDS)),
)

# A file row that a batch names stays: `nightmill check` compares them.
_OLD_TOMBSTONES = select(file.c.id).where(
    file.c.deleted_at <= _cutoff,
    file.c.blob_key.is_(None),
    *(
        file.c.id.not_in(select(column).where(column.is_not(None)))
        for column in (batch.c.input_file_id, batch.c.output_file_id, batch.c.error_file_id)
    ),
)
_DELETE_TOMBSTONES = (
    delete(idempotency).where(idempotency.c.operation == "add_file", idempotency.c.object_id.in_(_IDS)),
    delete(file).where(file.c.id.in_(_IDS)),
)
_OLD_UPLOADS = select(upload.c.id).where(
    upload.c.status != PENDING,
    upload.c.created_at <= _cutoff,
    ~exists().where(upload_part.c.upload_id == upload.c.id, upload_part.c.blob_key.is_not(None)),
    ~exists().where(file.c.id == upload.c.file_id, _IS_LIVE_FILE),
)
_DELETE_UPLOADS = (
    delete(upload_part).where(upload_part.c.upload_id.in_(_IDS)),
    delete(upload).where(upload.c.id.in_(_IDS)),
)

_IS_OLD_FILE: tuple[ColumnElement[bool], ...] = (
    _IS_LIVE_FILE,
    file.c.purpose.in_([Purpose.BATCH.value, Purpose.BATCH_OUTPUT.value]),
    file.c.created_at <= _cutoff,
    or_(_ONLY_PROJECT.is_(None), file.c.project_id == _ONLY_PROJECT),
    ~is_held_file,
    ~exists().where(batch.c.input_file_id == file.c.id, text("batch." + schema.IS_UNFINISHED)),
)
_OLD_FILES = select(file.c.sequence, file.c.project_id).where(*_IS_OLD_FILE).limit(_AT_ONCE)
_SUM_OF_OLD_FILES = select(func.count(), func.coalesce(func.sum(file.c.size_bytes), 0)).where(*_IS_OLD_FILE)
_DELETE_FILES = (
    update(file)
    .where(file.c.sequence.in_(_SEQUENCES), *_IS_OLD_FILE)
    .values(deleted_at=stamp())
    .returning(file.c.id, file.c.project_id, file.c.size_bytes)
)


@dataclass(frozen=True, slots=True)
class OldObjects:
    """What is older than a time and may go: files with their bytes, and rows of ended batches.

    Args:
        batches: including those whose files are among `files`.
    """

    files: int
    file_bytes: int
    batches: int


class Pruning(Verbs):
    """What is old, and its removal. Each removal is bounded: call it again until it returns 0."""

    @read
    @staticmethod
    def old(connection: Connection, *, kept_s: float, project_id: str | None = None) -> OldObjects:
        """Counts; changes nothing."""
        given = _given(kept_s, project_id)
        files, file_bytes = connection.execute(_SUM_OF_OLD_FILES, given).one()
        batches = connection.execute(
            select(func.count()).select_from(_without_need_of_files().subquery()), given
        ).scalar_one()
        return OldObjects(files, int(file_bytes), batches)

    @write
    @staticmethod
    def delete_files(
        connection: Connection, *, kept_s: float, project_id: str | None = None, by: Actor
    ) -> int:
        """Deletes input and output files of batches that were created so long ago; returns how many.

        Files under legal hold, and inputs of unfinished batches, stay.
        """
        given = _given(kept_s, project_id)
        rows = connection.execute(_OLD_FILES, given).all()
        if not rows:
            return 0
        projects.lock(connection, {row.project_id for row in rows})
        sequences = [row.sequence for row in rows]
        deleted = connection.execute(_DELETE_FILES, {**given, "sequences": sequences}).all()
        for row in deleted:
            projects.remove_bytes(connection, row.project_id, row.size_bytes)
        subjects = [(row.id, row.project_id) for row in deleted]
        audit.record_all(connection, by, AuditAction.FILE_DELETED, subjects)
        return len(deleted)

    @write
    @staticmethod
    def remove_batches(
        connection: Connection, *, kept_s: float, project_id: str | None = None, by: Actor = NIGHTMILL
    ) -> int:
        """Removes the rows of batches that ended so long ago and whose files are gone; returns how many."""
        given = _given(kept_s, project_id)
        query = _OLD_BATCHES.limit(_AT_ONCE)
        locked = {row.project_id for row in connection.execute(query, given)}
        if not locked:
            return 0
        projects.lock(connection, locked)
        rows = [row for row in connection.execute(query, given) if row.project_id in locked]
        _delete(connection, _DELETE_BATCHES, [row.id for row in rows])
        subjects = [(row.id, row.project_id) for row in rows]
        audit.record_all(connection, by, AuditAction.BATCH_REMOVED, subjects)
        return len(rows)

    @write
    @staticmethod
    def remove_tombstones(connection: Connection, *, kept_s: float) -> int:
        """Removes rows of files deleted so long ago, and of uploads that old; returns how many."""
        removed = 0
        for query, statements in ((_OLD_UPLOADS, _DELETE_UPLOADS), (_OLD_TOMBSTONES, _DELETE_TOMBSTONES)):
            ids = connection.execute(query.limit(_AT_ONCE), {"kept_s": kept_s}).scalars().all()
            _delete(connection, statements, ids)
            removed += len(ids)
        return removed


def _without_need_of_files() -> Any:
    """The old batches, as they will be once their old files are deleted."""
    old_files = select(file.c.id).where(*_IS_OLD_FILE)
    return select(batch.c.id).where(
        batch.c.status.in_([status.value for status in TERMINAL]),
        ended_at <= _cutoff,
        _in_project,
        batch.c.id.not_in(held_ids(HoldKind.BATCH)),
        batch.c.project_id.not_in(held_ids(HoldKind.PROJECT)),
        *(
            ~exists().where(file.c.id == column, _IS_LIVE_FILE, file.c.id.not_in(old_files))
            for column in (batch.c.output_file_id, batch.c.error_file_id)
        ),
    )


def _given(kept_s: float, project_id: str | None) -> dict[str, Any]:
    return {"kept_s": kept_s, "only_project": project_id}


def _delete(connection: Connection, statements: Sequence[Any], ids: Sequence[str]) -> None:
    if ids:
        for statement in statements:
            connection.execute(statement, {"ids": list(ids)})
