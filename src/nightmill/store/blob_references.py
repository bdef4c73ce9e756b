"""Which rows reference which blobs: blobs that may be deleted, and blobs that may not.

The finding of blobs that no row references at all is the orphan sweep's work (`roles`).
"""

from collections.abc import Collection, Sequence, Set
from typing import Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    union_all,
    update,
)

from nightmill.core.batch import TERMINAL
from nightmill.core.legal_hold import HoldKind
from nightmill.store import schema
from nightmill.store.clock import now
from nightmill.store.holds import held_ids
from nightmill.store.rows import portions
from nightmill.store.schema import PENDING, batch, file, piece, slice_, upload, upload_part
from nightmill.store.verbs import Verbs, read, write

_other = file.alias("other")

REPORT_KEPT_S: Final = 30 * 86_400
"""A validation report is deleted so long after the end of its batch."""


def _is_needed(blob_key: ColumnElement[str]) -> ColumnElement[bool]:
    by_a_file = exists().where(_other.c.blob_key == blob_key, _other.c.deleted_at.is_(None))
    by_a_batch = exists().where(batch.c.input_blob_key == blob_key, text("batch." + schema.IS_UNFINISHED))
    by_a_held_batch = exists().where(
        batch.c.id.in_(held_ids(HoldKind.BATCH)), batch.c.input_blob_key == blob_key
    )
    return or_(by_a_file, by_a_batch, by_a_held_batch)


ended_at = func.coalesce(batch.c.failed_at, batch.c.completed_at, batch.c.expired_at, batch.c.cancelled_at)
_IS_OLD_REPORT = (
    ended_at <= now() - REPORT_KEPT_S,
    batch.c.id.not_in(held_ids(HoldKind.BATCH)),
    batch.c.project_id.not_in(held_ids(HoldKind.PROJECT)),
)

_UNUSED = union_all(
    select(file.c.blob_key).where(
        text(schema.IS_TOMBSTONE_WITH_BLOB),
        file.c.project_id.not_in(held_ids(HoldKind.PROJECT)),
        ~_is_needed(file.c.blob_key),
    ),
    select(upload_part.c.blob_key)
    .join(upload, upload.c.id == upload_part.c.upload_id)
    .where(
        upload_part.c.blob_key.is_not(None), upload.c.status != PENDING, ~_is_needed(upload_part.c.blob_key)
    ),
    select(batch.c.index_blob_key).where(text(schema.IS_FINISHED_WITH_INDEX)),
    select(batch.c.report_blob_key).where(text(schema.HAS_REPORT), *_IS_OLD_REPORT),
    select(piece.c.blob_key).where(piece.c.of_blob_key.is_(None)),
).limit(bindparam("blob_limit"))
_REMOVE: Final = (
    update(file)
    .where(file.c.blob_key == bindparam("gone"), file.c.deleted_at.is_not(None))
    .values(blob_key=None),
    update(upload_part).where(upload_part.c.blob_key == bindparam("gone")).values(blob_key=None),
    update(batch)
    .where(batch.c.index_blob_key == bindparam("gone"), text(schema.IS_FINISHED_WITH_INDEX))
    .values(index_blob_key=None),
    update(batch).where(batch.c.report_blob_key == bindparam("gone")).values(report_blob_key=None),
    # Without the list of its pieces a blob of pieces no longer exists.
    update(piece).where(piece.c.of_blob_key == bindparam("gone")).values(of_blob_key=None),
    delete(piece).where(piece.c.blob_key == bindparam("gone")),
)
_KEYS: BindParameter[str] = bindparam("keys", expanding=True)
# The conditions on a batch are those of its partial indexes, so that no key costs a look at every batch.
_REFERENCED = union_all(
    select(file.c.blob_key).where(file.c.blob_key.in_(_KEYS)),
    select(upload_part.c.blob_key).where(
        upload_part.c.blob_key.is_not(None), upload_part.c.blob_key.in_(_KEYS)
    ),
    select(piece.c.blob_key).where(piece.c.blob_key.in_(_KEYS)),
    *(
        select(column).where(column.is_not(None), column.in_(_KEYS))
        for column in (slice_.c.output_blob_key, slice_.c.error_blob_key)
    ),
    select(batch.c.input_blob_key).where(text(schema.IS_UNFINISHED), batch.c.input_blob_key.in_(_KEYS)),
    select(batch.c.index_blob_key).where(text(schema.IS_UNFINISHED), batch.c.index_blob_key.in_(_KEYS)),
    select(batch.c.index_blob_key).where(
        text(schema.IS_FINISHED_WITH_INDEX), batch.c.index_blob_key.in_(_KEYS)
    ),
    select(batch.c.report_blob_key).where(text(schema.HAS_REPORT), batch.c.report_blob_key.in_(_KEYS)),
)


_ENDED_WITHOUT_FILES = select(batch.c.id).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)),
    batch.c.status.in_([status.value for status in TERMINAL]),
    batch.c.id.not_in(held_ids(HoldKind.BATCH)),
    ~exists().where(
        file.c.deleted_at.is_(None),
        or_(file.c.id == batch.c.output_file_id, file.c.id == batch.c.error_file_id),
    ),
)


_EXISTING = select(batch.c.id).where(batch.c.id.in_(bindparam("batch_ids", expanding=True)))


class BlobReferences(Verbs):
    """Keys of blobs in the rows of files, uploads, pieces, slices and batches."""

    @read
    @staticmethod
    def unused(connection: Connection, *, limit: int = 1_000) -> Sequence[str]:
        """Keys of deleted files, of ended uploads' parts, of finished batches' indexes and of old validation
        reports that nothing needs.

        The blob of a live file, the input of an unfinished batch and everything under legal hold is needed.
        The pieces of a blob are unused once `remove` was called for the blob itself.
        """
        return list(dict.fromkeys(connection.execute(_UNUSED, {"blob_limit": limit}).scalars()))

    @read
    @staticmethod
    def referenced(connection: Connection, keys: Collection[str]) -> Set[str]:
        """Those of `keys` that any row references, tombstones whose bytes still exist included."""
        found: set[str] = set()
        for portion in portions(keys):
            found.update(connection.execute(_REFERENCED, {"keys": portion}).scalars())
        return found

    @read
    @staticmethod
    def ended_without_files(connection: Connection, batch_ids: Collection[str]) -> Set[str]:
        """Those of `batch_ids` that have ended and whose files are all deleted, or whose rows are removed.

        Held batches are not among them.
        """
        found: set[str] = set()
        for portion in portions(batch_ids):
            given = {"batch_ids": portion}
            found.update(connection.execute(_ENDED_WITHOUT_FILES, given).scalars())
            found.update(set(portion).difference(connection.execute(_EXISTING, given).scalars()))
        return found

    @write
    @staticmethod
    def remove(connection: Connection, keys: Sequence[str]) -> None:
        """Removes the references to `keys`, whose bytes are deleted."""
        if not keys:
            return
        for statement in _REMOVE:
            connection.execute(statement, [{"gone": key} for key in keys])
