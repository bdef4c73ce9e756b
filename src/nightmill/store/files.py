"""Files and uploads: rows, tombstones, and which bytes nobody needs any more."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    insert,
    literal_column,
    or_,
    select,
    text,
    union_all,
    update,
)

from nightmill.core.audit import NIGHTMILL, Actor, AuditAction
from nightmill.core.file import File, Purpose, Upload, UploadPart, UploadStatus
from nightmill.core.legal_hold import HoldKind
from nightmill.core.limits import Limits, refusal_to_store
from nightmill.errors import ConflictError
from nightmill.ids import FileId, PartId, ProjectId, UploadId
from nightmill.store import audit, projects, schema
from nightmill.store.clock import now, stamp
from nightmill.store.holds import is_held_file, subjects
from nightmill.store.idempotent import first_object
from nightmill.store.paging import named_place, place, place_of
from nightmill.store.protocol import Idempotency, Page
from nightmill.store.schema import batch, file, piece, upload, upload_part

_is_live = text(schema.IS_LIVE)
_is_fresh = or_(file.c.expires_at.is_(None), file.c.expires_at > now(), is_held_file)
_PENDING = literal_column("'pending'", Text())

FILE_COLUMNS = (
    file.c.id,
    file.c.project_id,
    file.c.purpose,
    file.c.filename,
    file.c.size_bytes,
    file.c.created_at,
    file.c.expires_at,
    file.c.blob_key,
)
_FILE = select(*FILE_COLUMNS)
_ANY_FILE = _FILE.where(file.c.id == bindparam("file_id"))
_ONE_FILE = _FILE.where(
    file.c.id == bindparam("file_id"), file.c.project_id == bindparam("of_project_id"), _is_live, _is_fresh
)
_ADD_FILE = insert(file)
_DELETE_FILE = (
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
# So many at once that no transaction takes long, however much expired while nobody looked.
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


def file_row(it: File) -> dict[str, Any]:
    return {
        "id": it.id,
        "project_id": it.project_id,
        "purpose": it.purpose.value,
        "filename": it.filename,
        "size_bytes": it.size_bytes,
        "created_at": it.created_at,
        "expires_at": it.expires_at,
        "blob_key": it.blob_key,
    }


def as_file(row: Any) -> File:
    file_id, project_id, purpose, filename, size_bytes, created_at, expires_at, blob_key = row
    return File(
        id=FileId(file_id),
        project_id=ProjectId(project_id),
        purpose=Purpose(purpose),
        filename=filename,
        size_bytes=size_bytes,
        created_at=created_at,
        expires_at=expires_at,
        blob_key=blob_key or "",
    )


def add_file(
    connection: Connection, it: File, idempotency: Idempotency | None, limits: Limits, by: Actor | None
) -> File:
    first_id = first_object(
        connection,
        project_id=it.project_id,
        operation="add_file",
        idempotency=idempotency,
        object_id=it.id,
    )
    if first_id != it.id:
        return as_file(connection.execute(_ANY_FILE, {"file_id": first_id}).one())
    keep_file(connection, it, limits)
    audit.record(connection, by, AuditAction.FILE_CREATED, it.id, project_id=it.project_id)
    return it


def keep_file(connection: Connection, it: File, limits: Limits) -> None:
    """Raises:
    RequestError: the project keeps as much as it may.
    """
    limits = projects.limits_of(connection, it.project_id, limits)
    if limits.stored_bytes:
        stored_bytes = projects.locked_bytes(connection, it.project_id)
        refusal = refusal_to_store(
            limits, project_id=it.project_id, stored_bytes=stored_bytes, size_bytes=it.size_bytes
        )
        if refusal is not None:
            raise refusal
    connection.execute(_ADD_FILE, file_row(it))
    projects.keep_bytes(connection, it.project_id, it.size_bytes)


def find_file(connection: Connection, project_id: ProjectId, file_id: FileId) -> File | None:
    row = connection.execute(_ONE_FILE, {"file_id": file_id, "of_project_id": project_id}).one_or_none()
    return None if row is None else as_file(row)


def list_files(
    connection: Connection,
    project_id: ProjectId,
    purpose: str | None,
    after: FileId | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> Page[File]:
    query = _FILE.where(file.c.project_id == bindparam("of_project_id"), _is_live, _is_fresh)
    given: dict[str, Any] = {"of_project_id": project_id, "page_rows": limit + 1}
    if purpose is not None:
        query = query.where(file.c.purpose == bindparam("purpose"))
        given["purpose"] = purpose
    if after is not None:
        created_at, sequence = place_of(connection, file, project_id, after)
        given |= {"after_created_at": created_at, "after_sequence": sequence}
        query = query.where(place(file) > named_place() if order == "asc" else place(file) < named_place())
    columns: tuple[ColumnElement[Any], ...] = (file.c.created_at, file.c.sequence)
    query = query.order_by(*(columns if order == "asc" else (column.desc() for column in columns)))
    rows = connection.execute(query.limit(bindparam("page_rows")), given).all()
    return Page(tuple(as_file(row) for row in rows[:limit]), has_more=len(rows) > limit)


def delete_file(connection: Connection, project_id: ProjectId, file_id: FileId, by: Actor | None) -> bool:
    projects.lock(connection, [project_id])
    given = {"file_id": file_id, "of_project_id": project_id}
    size_bytes = connection.execute(_DELETE_FILE, given).scalar_one_or_none()
    if size_bytes is None:
        if find_file(connection, project_id, file_id) is not None:
            raise ConflictError(
                f"The file '{file_id}' is under legal hold and can't be deleted.",
                param="id",
                code="legal_hold",
            )
        return False
    projects.free_bytes(connection, project_id, size_bytes)
    audit.record(connection, by, AuditAction.FILE_DELETED, file_id, project_id=project_id)
    return True


def delete_expired_files(connection: Connection) -> int:
    given = {"expired_limit": _EXPIRED_AT_ONCE}
    expired = set(connection.execute(_EXPIRED_PROJECTS, given).scalars())
    if not expired:
        return 0
    projects.lock(connection, expired)
    deleted = connection.execute(_DELETE_EXPIRED, {**given, "locked": sorted(expired)}).all()
    for project_id in sorted({row.project_id for row in deleted}):
        freed_bytes = sum(row.size_bytes for row in deleted if row.project_id == project_id)
        projects.free_bytes(connection, project_id, freed_bytes)
    subjects = [(row.id, row.project_id) for row in deleted]
    audit.record_all(connection, NIGHTMILL, AuditAction.FILE_EXPIRED, subjects)
    return len(deleted)


# --- bytes that nobody needs ---------------------------------------------------------------------------

_other = file.alias("other")


def _is_needed(blob_key: ColumnElement[str]) -> ColumnElement[bool]:
    by_a_file = exists().where(_other.c.blob_key == blob_key, _other.c.deleted_at.is_(None))
    by_a_batch = exists().where(batch.c.input_blob_key == blob_key, text("batch." + schema.IS_UNFINISHED))
    by_a_held_batch = exists().where(
        batch.c.id.in_(subjects(HoldKind.BATCH)), batch.c.input_blob_key == blob_key
    )
    return or_(by_a_file, by_a_batch, by_a_held_batch)


_UNUSED_BLOBS = union_all(
    select(file.c.blob_key).where(
        text(schema.IS_TOMBSTONE_WITH_BLOB),
        file.c.project_id.not_in(subjects(HoldKind.PROJECT)),
        ~_is_needed(file.c.blob_key),
    ),
    select(upload_part.c.blob_key)
    .join(upload, upload.c.id == upload_part.c.upload_id)
    .where(
        upload_part.c.blob_key.is_not(None), upload.c.status != _PENDING, ~_is_needed(upload_part.c.blob_key)
    ),
    select(batch.c.index_blob_key).where(text(schema.IS_FINISHED_WITH_INDEX)),
    select(piece.c.blob_key).where(piece.c.of_blob_key.is_(None)),
).limit(bindparam("blob_limit"))

_FORGET_BLOBS = (
    update(file)
    .where(file.c.blob_key == bindparam("gone"), file.c.deleted_at.is_not(None))
    .values(blob_key=None),
    update(upload_part).where(upload_part.c.blob_key == bindparam("gone")).values(blob_key=None),
    update(batch)
    .where(batch.c.index_blob_key == bindparam("gone"), text(schema.IS_FINISHED_WITH_INDEX))
    .values(index_blob_key=None),
    # With the list of its pieces a blob of pieces is gone.
    update(piece).where(piece.c.of_blob_key == bindparam("gone")).values(of_blob_key=None),
    delete(piece).where(piece.c.blob_key == bindparam("gone")),
)


def unused_blobs(connection: Connection, limit: int) -> Sequence[str]:
    keys = connection.execute(_UNUSED_BLOBS, {"blob_limit": limit}).scalars()
    return list(dict.fromkeys(keys))


def forget_blobs(connection: Connection, keys: Sequence[str]) -> None:
    if not keys:
        return
    for statement in _FORGET_BLOBS:
        connection.execute(statement, [{"gone": key} for key in keys])


# --- uploads -------------------------------------------------------------------------------------------

_is_pending = and_(upload.c.status == _PENDING, upload.c.expires_at > now())
_ADD_UPLOAD = insert(upload)
_ONE_UPLOAD = select(
    upload.c.id,
    upload.c.project_id,
    upload.c.purpose,
    upload.c.filename,
    upload.c.mime_type,
    upload.c.size_bytes,
    upload.c.created_at,
    upload.c.expires_at,
    case(
        (and_(upload.c.status == _PENDING, upload.c.expires_at <= now()), UploadStatus.EXPIRED.value),
        else_=upload.c.status,
    ),
    upload.c.file_expires_after_s,
    upload.c.file_id,
).where(upload.c.id == bindparam("upload_id"), upload.c.project_id == bindparam("of_project_id"))
# Writing the row's own status takes its lock: a part is not added to an upload that is just ending.
_TOUCH_UPLOAD = (
    update(upload).where(upload.c.id == bindparam("upload_id"), _is_pending).values(status=_PENDING)
)
_END_UPLOAD = (
    update(upload)
    .where(upload.c.id == bindparam("upload_id"), _is_pending)
    .values(status=bindparam("ended_as"), file_id=bindparam("made_file_id"))
)
_EXPIRE_UPLOADS = (
    update(upload)
    .where(upload.c.status == _PENDING, upload.c.expires_at <= now())
    .values(status=UploadStatus.EXPIRED.value)
)
_ADD_PART = insert(upload_part)
_ADD_PIECES = insert(piece)
_HAND_OVER_PARTS = (
    update(upload_part)
    .where(
        upload_part.c.upload_id == bindparam("of_upload_id"),
        upload_part.c.blob_key.in_(bindparam("keys", expanding=True)),
    )
    .values(blob_key=None)
)
_ROWS_AT_ONCE = 500
_PARTS = (
    select(
        upload_part.c.id,
        upload_part.c.upload_id,
        upload_part.c.size_bytes,
        upload_part.c.created_at,
        upload_part.c.blob_key,
    )
    .where(upload_part.c.upload_id == bindparam("upload_id"))
    .order_by(upload_part.c.sequence)
)


def add_upload(connection: Connection, it: Upload, by: Actor | None) -> None:
    row = {
        "id": it.id,
        "project_id": it.project_id,
        "purpose": it.purpose.value,
        "filename": it.filename,
        "mime_type": it.mime_type,
        "size_bytes": it.size_bytes,
        "created_at": it.created_at,
        "expires_at": it.expires_at,
        "status": it.status.value,
        "file_expires_after_s": it.file_expires_after_s,
        "file_id": it.file_id,
    }
    connection.execute(_ADD_UPLOAD, row)
    audit.record(connection, by, AuditAction.UPLOAD_CREATED, it.id, project_id=it.project_id)


def find_upload(connection: Connection, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
    given = {"upload_id": upload_id, "of_project_id": project_id}
    row = connection.execute(_ONE_UPLOAD, given).one_or_none()
    if row is None:
        return None
    found_id, owner, purpose, filename, mime, size_bytes, created_at, expires_at, status, after_s, made = row
    return Upload(
        id=found_id,
        project_id=owner,
        purpose=Purpose(purpose),
        filename=filename,
        mime_type=mime,
        size_bytes=size_bytes,
        created_at=created_at,
        expires_at=expires_at,
        status=UploadStatus(status),
        file_expires_after_s=after_s,
        file_id=made,
    )


def add_upload_part(connection: Connection, part: UploadPart) -> bool:
    if connection.execute(_TOUCH_UPLOAD, {"upload_id": part.upload_id}).rowcount == 0:
        return False
    row = {
        "id": part.id,
        "upload_id": part.upload_id,
        "size_bytes": part.size_bytes,
        "created_at": part.created_at,
        "blob_key": part.blob_key,
    }
    connection.execute(_ADD_PART, row)
    return True


def upload_parts(connection: Connection, upload_id: UploadId) -> Sequence[UploadPart]:
    rows = connection.execute(_PARTS, {"upload_id": upload_id})
    return [
        UploadPart(PartId(part_id), UploadId(owner), size_bytes, created_at, blob_key or "")
        for part_id, owner, size_bytes, created_at, blob_key in rows
    ]


def complete_upload(
    connection: Connection,
    it: Upload,
    made: File,
    part_keys: Sequence[str],
    limits: Limits,
    by: Actor | None,
) -> bool:
    if not _end_upload(connection, it.id, UploadStatus.COMPLETED, made.id):
        return False
    keep_file(connection, made, limits)
    for first in range(0, len(part_keys), _ROWS_AT_ONCE):
        some = part_keys[first : first + _ROWS_AT_ONCE]
        connection.execute(_HAND_OVER_PARTS, {"of_upload_id": it.id, "keys": some})
        pieces = [{"blob_key": key, "of_blob_key": made.blob_key} for key in some if key != made.blob_key]
        if pieces:
            connection.execute(_ADD_PIECES, pieces)
    audit.record(
        connection,
        by,
        AuditAction.UPLOAD_COMPLETED,
        it.id,
        project_id=it.project_id,
        detail=f"made {made.id}",
    )
    return True


def cancel_upload(connection: Connection, it: Upload, by: Actor | None) -> bool:
    if not _end_upload(connection, it.id, UploadStatus.CANCELLED, None):
        return False
    audit.record(connection, by, AuditAction.UPLOAD_CANCELLED, it.id, project_id=it.project_id)
    return True


def expire_uploads(connection: Connection) -> int:
    return connection.execute(_EXPIRE_UPLOADS).rowcount


def _end_upload(
    connection: Connection, upload_id: UploadId, status: UploadStatus, file_id: FileId | None
) -> bool:
    given = {"upload_id": upload_id, "ended_as": status.value, "made_file_id": file_id}
    return connection.execute(_END_UPLOAD, given).rowcount == 1
