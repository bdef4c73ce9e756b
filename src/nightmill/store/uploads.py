"""Uploads: a file that arrives in parts, and becomes a file once, or expires."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, and_, bindparam, case, insert, select, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.file import File, Purpose, Upload, UploadPart, UploadStatus
from nightmill.core.limits import NO_LIMITS, Limits
from nightmill.ids import FileId, ProjectId, UploadId
from nightmill.store import audit
from nightmill.store.clock import now
from nightmill.store.files import insert_file
from nightmill.store.rows import columns_of, portions, row_of
from nightmill.store.schema import PENDING, piece, upload, upload_part
from nightmill.store.verbs import Verbs, read, write

_is_pending = and_(upload.c.status == PENDING, upload.c.expires_at > now())
_ADD = insert(upload)
_ONE = select(
    upload.c.id,
    upload.c.project_id,
    upload.c.purpose,
    upload.c.filename,
    upload.c.mime_type,
    upload.c.size_bytes,
    upload.c.created_at,
    upload.c.expires_at,
    case(
        (and_(upload.c.status == PENDING, upload.c.expires_at <= now()), UploadStatus.EXPIRED.value),
        else_=upload.c.status,
    ),
    upload.c.file_expires_after_s,
    upload.c.file_id,
).where(upload.c.id == bindparam("upload_id"), upload.c.project_id == bindparam("of_project_id"))
# Writing the row's own status takes its lock: no part is added to an upload that is just ending.
_LOCK_PENDING = (
    update(upload).where(upload.c.id == bindparam("upload_id"), _is_pending).values(status=PENDING)
)
_END = (
    update(upload)
    .where(upload.c.id == bindparam("upload_id"), _is_pending)
    .values(status=bindparam("ended_as"), file_id=bindparam("made_file_id"))
)
_EXPIRE = (
    update(upload)
    .where(upload.c.status == PENDING, upload.c.expires_at <= now())
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
PART_COLUMNS = columns_of(UploadPart, upload_part)
_PARTS = (
    select(*PART_COLUMNS)
    .where(upload_part.c.upload_id == bindparam("upload_id"))
    .order_by(upload_part.c.sequence)
)


class Uploads(Verbs):
    """Uploads and their parts."""

    @write
    @staticmethod
    def add(connection: Connection, new: Upload, *, by: Actor | None = None) -> None:
        connection.execute(_ADD, row_of(new))
        audit.record(connection, by, AuditAction.UPLOAD_CREATED, new.id, project_id=new.project_id)

    @read
    @staticmethod
    def get(connection: Connection, project_id: ProjectId, upload_id: UploadId) -> Upload | None:
        """With its status as of now: `expired` once its hour is over. None when the project has none such."""
        given = {"upload_id": upload_id, "of_project_id": project_id}
        row = connection.execute(_ONE, given).one_or_none()
        if row is None:
            return None
        found = Upload(*row)
        return replace(found, purpose=Purpose(found.purpose), status=UploadStatus(found.status))

    @write
    @staticmethod
    def add_part(connection: Connection, part: UploadPart) -> bool:
        """False when the upload is no longer pending."""
        if connection.execute(_LOCK_PENDING, {"upload_id": part.upload_id}).rowcount == 0:
            return False
        connection.execute(_ADD_PART, row_of(part))
        return True

    @read
    @staticmethod
    def parts(connection: Connection, upload_id: UploadId) -> Sequence[UploadPart]:
        """In the order they arrived."""
        parts = (UploadPart(*row) for row in connection.execute(_PARTS, {"upload_id": upload_id}))
        return [replace(part, blob_key=part.blob_key or "") for part in parts]

    @write
    @staticmethod
    def complete(
        connection: Connection,
        pending: Upload,
        file: File,
        *,
        part_keys: Sequence[str] = (),
        limits: Limits = NO_LIMITS,
        by: Actor | None = None,
    ) -> bool:
        """pending -> completed together with its file. False when the upload was no longer pending.

        Args:
            part_keys: blobs of parts that belong to the file from then on: its pieces, or its only blob.

        Raises:
            RequestError: the project stores as much as it may; the upload then stays pending.
        """
        if not _end(connection, pending.id, UploadStatus.COMPLETED, file.id):
            return False
        insert_file(connection, file, limits)
        for keys in portions(part_keys):
            connection.execute(_HAND_OVER_PARTS, {"of_upload_id": pending.id, "keys": keys})
            pieces = [{"blob_key": key, "of_blob_key": file.blob_key} for key in keys if key != file.blob_key]
            if pieces:
                connection.execute(_ADD_PIECES, pieces)
        audit.record(
            connection,
            by,
            AuditAction.UPLOAD_COMPLETED,
            pending.id,
            project_id=pending.project_id,
            detail=f"made {file.id}",
        )
        return True

    @write
    @staticmethod
    def cancel(connection: Connection, pending: Upload, *, by: Actor | None = None) -> bool:
        """False when the upload was no longer pending."""
        if not _end(connection, pending.id, UploadStatus.CANCELLED, None):
            return False
        audit.record(connection, by, AuditAction.UPLOAD_CANCELLED, pending.id, project_id=pending.project_id)
        return True

    @write
    @staticmethod
    def expire(connection: Connection) -> int:
        """Ends pending uploads whose hour is over. Returns how many."""
        return connection.execute(_EXPIRE).rowcount


def _end(connection: Connection, upload_id: UploadId, status: UploadStatus, file_id: FileId | None) -> bool:
    given = {"upload_id": upload_id, "ended_as": status.value, "made_file_id": file_id}
    return connection.execute(_END, given).rowcount == 1
