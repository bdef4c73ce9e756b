"""Files: rows and tombstones. The bytes are in `blobs`; `blob_references` says which of them are unused."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, bindparam, insert, or_, select, text, update

from nightmill.core.audit import NIGHTMILL, Actor, AuditAction
from nightmill.core.file import File, Purpose
from nightmill.core.limits import NO_LIMITS, Limits, refusal_to_store
from nightmill.errors import ConflictError
from nightmill.ids import FileId, ProjectId
from nightmill.store import audit, projects, schema
from nightmill.store.clock import now, stamp
from nightmill.store.holds import is_held_file
from nightmill.store.idempotency_keys import Idempotency, first_object
from nightmill.store.paging import Page, named_place, page_of, place
from nightmill.store.rows import columns_of, row_of
from nightmill.store.schema import file
from nightmill.store.verbs import Verbs, read, write

_is_live = text(schema.IS_LIVE)
_is_fresh = or_(file.c.expires_at.is_(None), file.c.expires_at > now(), is_held_file)

FILE_COLUMNS = columns_of(File, file)
_FILE = select(*FILE_COLUMNS)
_ANY = _FILE.where(file.c.id == bindparam("file_id"))
_NAMES = select(file.c.id, file.c.filename).where(file.c.id.in_(bindparam("file_ids", expanding=True)))
_ONE = _FILE.where(
    file.c.id == bindparam("file_id"), file.c.project_id == bindparam("of_project_id"), _is_live, _is_fresh
)
_ADD = insert(file)
_DELETE = (
    update(file)
    .where(
        file.c.id == bindparam("file_id"),
        file.c.project_id == bindparam("of_project_id"),
        _is_live,
        _is_fresh,
        ~is_held_file,
    )
    .values(deleted_at=stamp())
    .returning(file.c.size_bytes)
)
# Bounds how long one transaction takes, however many files have expired.
_EXPIRED_AT_ONCE = 1_000
_EXPIRED = (
    select(file.c.sequence)
    .where(_is_live, file.c.expires_at <= now(), ~is_held_file)
    .order_by(file.c.expires_at)
    .limit(bindparam("expired_limit"))
)
_EXPIRED_PROJECTS = _EXPIRED.with_only_columns(file.c.project_id)
_DELETE_EXPIRED = (
    update(file)
    .where(file.c.sequence.in_(_EXPIRED), file.c.project_id.in_(bindparam("locked", expanding=True)))
    .values(deleted_at=stamp())
    .returning(file.c.id, file.c.project_id, file.c.size_bytes)
)


class Files(Verbs):
    """Files of projects."""

    @write
    @staticmethod
    def add(
        connection: Connection,
        new: File,
        idempotency: Idempotency | None = None,
        *,
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> File:
        """The stored file: `new`, or the file that was first added with the idempotency key.

        Raises:
            ConflictError: the key was used for a request with another fingerprint.
            RequestError: the project stores as much as it may.
        """
        first_id = first_object(
            connection,
            project_id=new.project_id,
            operation="add_file",
            idempotency=idempotency,
            object_id=new.id,
        )
        if first_id != new.id:
            return as_file(connection.execute(_ANY, {"file_id": first_id}).one())
        insert_file(connection, new, limits)
        audit.record(connection, by, AuditAction.FILE_CREATED, new.id, project_id=new.project_id)
        return new

    @read
    @staticmethod
    def get(connection: Connection, project_id: ProjectId, file_id: FileId) -> File | None:
        """None when unknown, deleted, expired by the store's clock (unless held), or of another project."""
        row = connection.execute(_ONE, {"file_id": file_id, "of_project_id": project_id}).one_or_none()
        return None if row is None else as_file(row)

    @read
    @staticmethod
    def names(connection: Connection, file_ids: Sequence[FileId]) -> dict[FileId, str]:
        """The names of some files, deleted ones included; files that never existed are left out."""
        if not file_ids:
            return {}
        rows = connection.execute(_NAMES, {"file_ids": sorted(set(file_ids))})
        return {FileId(row.id): row.filename for row in rows}

    @read
    @staticmethod
    def list(
        connection: Connection,
        project_id: ProjectId,
        *,
        purpose: str | None = None,
        after: FileId | None = None,
        limit: int = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[File]:
        """By (created_at, order of insertion). `after` may name a deleted file.

        Raises:
            NotFoundError: the project never had the file `after`.
        """
        query = _FILE.where(file.c.project_id == bindparam("of_project_id"), _is_live, _is_fresh)
        given: dict[str, Any] = {"of_project_id": project_id}
        if purpose is not None:
            query = query.where(file.c.purpose == bindparam("purpose"))
            given["purpose"] = purpose
        columns: tuple[ColumnElement[Any], ...] = (file.c.created_at, file.c.sequence)
        query = query.order_by(*(columns if order == "asc" else (column.desc() for column in columns)))
        query = query.limit(bindparam("page_rows"))
        return page_of(
            connection,
            file,
            query,
            query.where(place(file) > named_place() if order == "asc" else place(file) < named_place()),
            parameters=given,
            project_id=project_id,
            after=after,
            limit=limit,
            as_item=as_file,
        )

    @write
    @staticmethod
    def delete(
        connection: Connection, project_id: ProjectId, file_id: FileId, *, by: Actor | None = None
    ) -> bool:
        """Leaves a tombstone, so that cursors stay valid. False when there was nothing to delete.

        Raises:
            ConflictError: the file is under legal hold.
        """
        projects.lock(connection, [project_id])
        given = {"file_id": file_id, "of_project_id": project_id}
        size_bytes = connection.execute(_DELETE, given).scalar_one_or_none()
        if size_bytes is None:
            if Files.get(connection, project_id, file_id) is not None:
                raise ConflictError(
                    f"The file '{file_id}' is under legal hold and can't be deleted.",
                    param="id",
                    code="legal_hold",
                )
            return False
        projects.remove_bytes(connection, project_id, size_bytes)
        audit.record(connection, by, AuditAction.FILE_DELETED, file_id, project_id=project_id)
        return True

    @write
    @staticmethod
    def delete_expired(connection: Connection) -> int:
        """Deletes up to 1,000 expired files that are not held. Returns how many: call again until it is 0."""
        given = {"expired_limit": _EXPIRED_AT_ONCE}
        expired = set(connection.execute(_EXPIRED_PROJECTS, given).scalars())
        if not expired:
            return 0
        projects.lock(connection, expired)
        deleted = connection.execute(_DELETE_EXPIRED, {**given, "locked": sorted(expired)}).all()
        for project_id in sorted({row.project_id for row in deleted}):
            freed_bytes = sum(row.size_bytes for row in deleted if row.project_id == project_id)
            projects.remove_bytes(connection, project_id, freed_bytes)
        subjects = [(row.id, row.project_id) for row in deleted]
        audit.record_all(connection, NIGHTMILL, AuditAction.FILE_EXPIRED, subjects)
        return len(deleted)


def insert_file(connection: Connection, new: File, limits: Limits) -> None:
    """Adds the row of a file and counts its bytes for the project.

    Raises:
        RequestError: the project stores as much as it may.
    """
    limits = projects.limits_of(connection, new.project_id, limits)
    if limits.stored_bytes:
        stored_bytes = projects.locked_bytes(connection, new.project_id)
        refusal = refusal_to_store(
            limits, project_id=new.project_id, stored_bytes=stored_bytes, size_bytes=new.size_bytes
        )
        if refusal is not None:
            raise refusal
    connection.execute(_ADD, row_of(new))
    projects.add_bytes(connection, new.project_id, new.size_bytes)


def as_file(row: Sequence[Any]) -> File:
    """From a row of `FILE_COLUMNS`."""
    new = File(*row)
    return replace(new, purpose=Purpose(new.purpose), blob_key=new.blob_key or "")
