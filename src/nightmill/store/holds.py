"""Legal holds: projects, files and batches whose files may not be deleted.

A deletion of a file and a new hold both lock the file's project. So a deletion ends before the hold is set,
or sees the hold.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, or_, select

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.legal_hold import Hold, HoldKind
from nightmill.errors import NotFoundError
from nightmill.store import audit, projects
from nightmill.store.clock import stamp
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import batch, file, hold
from nightmill.store.verbs import Verbs, read, write

_SET = insert_if_absent(
    hold,
    {
        "kind": bindparam("new_kind"),
        "subject_id": bindparam("new_subject_id"),
        "reason": bindparam("new_reason"),
        "created_at": stamp(),
    },
)
_CLEAR = delete(hold).where(
    hold.c.kind == bindparam("of_kind"), hold.c.subject_id == bindparam("of_subject_id")
)
_LIST = select(hold.c.kind, hold.c.subject_id, hold.c.reason, hold.c.created_at).order_by(
    hold.c.created_at, hold.c.kind, hold.c.subject_id
)
_TABLES: Final[dict[HoldKind, Table]] = {HoldKind.FILE: file, HoldKind.BATCH: batch}


def held_ids(kind: HoldKind) -> Any:
    """A subquery of the held ids of that kind, for IN."""
    return select(hold.c.subject_id).where(hold.c.kind == kind.value)


def _files_of_held_batches(column: ColumnElement[Any]) -> Any:
    return select(column).where(batch.c.id.in_(held_ids(HoldKind.BATCH)), column.is_not(None))


is_held_file: ColumnElement[bool] = or_(
    file.c.project_id.in_(held_ids(HoldKind.PROJECT)),
    file.c.id.in_(held_ids(HoldKind.FILE)),
    file.c.id.in_(_files_of_held_batches(batch.c.input_file_id)),
    file.c.id.in_(_files_of_held_batches(batch.c.output_file_id)),
    file.c.id.in_(_files_of_held_batches(batch.c.error_file_id)),
)


class Holds(Verbs):
    """Legal holds on projects, files and batches."""

    @write
    @staticmethod
    def set(
        connection: Connection,
        kind: HoldKind,
        subject_id: str,
        *,
        reason: str | None = None,
        by: Actor | None = None,
    ) -> bool:
        """From the return of the call on, nothing that is held is deleted. False when it was held already.

        Raises:
            NotFoundError: there is no such file or batch.
        """
        project_id = _project_of(connection, kind, subject_id)
        projects.locked_bytes(connection, project_id)
        _project_of(connection, kind, subject_id)  # raises if it was deleted while this waited for the lock
        given = {"new_kind": kind.value, "new_subject_id": subject_id, "new_reason": reason}
        if connection.execute(_SET[connection.dialect.name], given).rowcount == 0:
            return False
        audit.record(
            connection,
            by,
            AuditAction.HOLD_SET,
            subject_id,
            project_id=project_id,
            detail=f"{kind}: {reason or '-'}",
        )
        return True

    @write
    @staticmethod
    def clear(connection: Connection, kind: HoldKind, subject_id: str, *, by: Actor | None = None) -> bool:
        """False when there was no such hold."""
        given = {"of_kind": kind.value, "of_subject_id": subject_id}
        if connection.execute(_CLEAR, given).rowcount == 0:
            return False
        project_id = subject_id if kind is HoldKind.PROJECT else _project_of(connection, kind, subject_id)
        audit.record(
            connection, by, AuditAction.HOLD_CLEARED, subject_id, project_id=project_id, detail=kind.value
        )
        return True

    @read
    @staticmethod
    def list(connection: Connection) -> Sequence[Hold]:
        """All holds, oldest first."""
        return [Hold(HoldKind(kind), *rest) for kind, *rest in connection.execute(_LIST)]


def _project_of(connection: Connection, kind: HoldKind, subject_id: str) -> str:
    if kind is HoldKind.PROJECT:
        return subject_id
    table = _TABLES[kind]
    query = select(table.c.project_id).where(table.c.id == subject_id)
    if table is file:
        query = query.where(file.c.deleted_at.is_(None))
    project_id = connection.execute(query).scalar_one_or_none()
    if project_id is None:
        raise NotFoundError(f"there is no {kind} '{subject_id}' to hold")
    return project_id
