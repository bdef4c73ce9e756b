"""Legal holds: what nobody deletes, and who may say so.

Whoever deletes a file holds the lock of its project, and so does whoever sets a hold: a deletion is over when
the hold is set, or sees it.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Insert, Table, bindparam, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.legal_hold import Hold, HoldKind
from nightmill.errors import NotFoundError
from nightmill.store import audit, projects
from nightmill.store.clock import stamp
from nightmill.store.schema import batch, file, hold

_VALUES: dict[str, Any] = {
    "kind": bindparam("new_kind"),
    "subject_id": bindparam("new_subject_id"),
    "reason": bindparam("new_reason"),
    "created_at": stamp(),
}
_SET: dict[str, Insert] = {
    "sqlite": sqlite.insert(hold).values(_VALUES).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(hold).values(_VALUES).on_conflict_do_nothing(),
}
_CLEAR = delete(hold).where(
    hold.c.kind == bindparam("of_kind"), hold.c.subject_id == bindparam("of_subject_id")
)
_LIST = select(hold.c.kind, hold.c.subject_id, hold.c.reason, hold.c.created_at).order_by(
    hold.c.created_at, hold.c.kind, hold.c.subject_id
)
_TABLES: Final[dict[HoldKind, Table]] = {HoldKind.FILE: file, HoldKind.BATCH: batch}


def subjects(kind: HoldKind) -> Any:
    """The ids of that kind that are held, to be asked with IN."""
    return select(hold.c.subject_id).where(hold.c.kind == kind.value)


def _files_of_held_batches(column: ColumnElement[Any]) -> Any:
    return select(column).where(batch.c.id.in_(subjects(HoldKind.BATCH)), column.is_not(None))


is_held_file: ColumnElement[bool] = or_(
    file.c.project_id.in_(subjects(HoldKind.PROJECT)),
    file.c.id.in_(subjects(HoldKind.FILE)),
    file.c.id.in_(_files_of_held_batches(batch.c.input_file_id)),
    file.c.id.in_(_files_of_held_batches(batch.c.output_file_id)),
    file.c.id.in_(_files_of_held_batches(batch.c.error_file_id)),
)


def set_hold(
    connection: Connection, kind: HoldKind, subject_id: str, reason: str | None, by: Actor | None
) -> bool:
    """False when it was held already.

    Raises:
        NotFoundError: there is no such file or batch.
    """
    project_id = _project_of(connection, kind, subject_id)
    projects.locked_bytes(connection, project_id)
    _project_of(connection, kind, subject_id)  # not deleted while we waited
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


def clear_hold(connection: Connection, kind: HoldKind, subject_id: str, by: Actor | None) -> bool:
    given = {"of_kind": kind.value, "of_subject_id": subject_id}
    if connection.execute(_CLEAR, given).rowcount == 0:
        return False
    project_id = subject_id if kind is HoldKind.PROJECT else _project_of(connection, kind, subject_id)
    audit.record(
        connection, by, AuditAction.HOLD_CLEARED, subject_id, project_id=project_id, detail=kind.value
    )
    return True


def list_holds(connection: Connection) -> Sequence[Hold]:
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
