"""The audit log: which actor did what to which id, one row for a change, in the transaction of the change.

Rows are only added, and deleted when they are older than the operator wants to keep them. Rows of a project
under legal hold stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Insert, bindparam, delete, func, insert, or_, select

from nightmill.core.audit import Actor, AuditAction, AuditEntry
from nightmill.core.legal_hold import HoldKind
from nightmill.ids import ProjectId
from nightmill.store.clock import now
from nightmill.store.paging import Page
from nightmill.store.schema import audit, hold
from nightmill.store.verbs import Verbs, read, write

SEARCHED: Final = 50_000
"""Entries that one search reads."""
_ADD: Insert = insert(audit).values(
    at=now(),
    actor=bindparam("by_name"),
    hint=bindparam("by_hint"),
    action=bindparam("what"),
    project_id=bindparam("in_project_id"),
    subject_id=bindparam("on_id"),
    address=bindparam("from_address"),
    request_id=bindparam("by_request_id"),
    detail=bindparam("more"),
)
_ENTRIES = select(
    audit.c.sequence,
    audit.c.at,
    audit.c.actor,
    audit.c.hint,
    audit.c.address,
    audit.c.request_id,
    audit.c.action,
    audit.c.project_id,
    audit.c.subject_id,
    audit.c.detail,
)
_LAST = select(func.max(audit.c.sequence))
_IN_HELD_PROJECT = audit.c.project_id.in_(
    select(hold.c.subject_id).where(hold.c.kind == HoldKind.PROJECT.value)
)
_DELETE_OLD = delete(audit).where(
    audit.c.at <= now() - bindparam("kept_s"), or_(audit.c.project_id.is_(None), ~_IN_HELD_PROJECT)
)


@dataclass(frozen=True, slots=True)
class AuditSearch:
    """What a search of the audit log found. `goes_on_before`: where to go on; None at the end of the log."""

    items: tuple[AuditEntry, ...]
    goes_on_before: int | None


class Audit(Verbs):
    """The audit log."""

    @write
    @staticmethod
    def add(
        connection: Connection,
        by: Actor,
        action: AuditAction,
        subject_id: str,
        *,
        project_id: ProjectId | None = None,
    ) -> None:
        """Records an action that changes nothing else in the store."""
        record(connection, by, action, subject_id, project_id=project_id)

    @read
    @staticmethod
    def list(
        connection: Connection,
        *,
        project_id: ProjectId | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Page[AuditEntry]:
        """Newest first.

        Args:
            since: Unix seconds; only entries made then or later.
            before: the sequence of the last entry of the page before.
        """
        query = _ENTRIES.order_by(audit.c.sequence.desc()).limit(bindparam("page_rows"))
        given: dict[str, Any] = {"page_rows": limit + 1}
        if project_id is not None:
            query = query.where(audit.c.project_id == bindparam("of_project_id"))
            given["of_project_id"] = project_id
        if since is not None:
            query = query.where(audit.c.at >= bindparam("since_at"))
            given["since_at"] = since
        if before is not None:
            query = query.where(audit.c.sequence < bindparam("before_sequence"))
            given["before_sequence"] = before
        rows = connection.execute(query, given).all()
        return Page(tuple(_as_entry(row) for row in rows[:limit]), has_more=len(rows) > limit)

    @read
    @staticmethod
    def search(
        connection: Connection,
        *,
        project_id: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        subject_id: str | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> AuditSearch:
        """As `list`, with filters that no index serves: reads at most SEARCHED entries.

        Args:
            actor: the name of the actor, or the last letters of the key.
            action: such as `key.created`, or the part before the dot.
        """
        last = connection.execute(_LAST).scalar_one_or_none() or 0
        newest = last + 1 if before is None else min(before, last + 1)
        oldest = newest - SEARCHED
        query = _ENTRIES.where(audit.c.sequence < newest, audit.c.sequence >= oldest)
        if project_id is not None:
            query = query.where(audit.c.project_id == project_id)
        if actor is not None:
            query = query.where(or_(audit.c.actor == actor, audit.c.hint == actor))
        if action is not None:
            query = query.where(
                or_(audit.c.action == action, audit.c.action.startswith(action + ".", autoescape=True))
            )
        if subject_id is not None:
            query = query.where(audit.c.subject_id == subject_id)
        if since is not None:
            query = query.where(audit.c.at >= since)
        rows = connection.execute(query.order_by(audit.c.sequence.desc()).limit(limit + 1)).all()
        items = tuple(_as_entry(row) for row in rows[:limit])
        if len(rows) > limit:
            return AuditSearch(items, items[-1].sequence)
        return AuditSearch(items, oldest if oldest > 0 else None)

    @write
    @staticmethod
    def delete_older(connection: Connection, *, kept_s: float) -> int:
        """Deletes entries older than `kept_s` seconds, except those of held projects. Returns how many."""
        return connection.execute(_DELETE_OLD, {"kept_s": kept_s}).rowcount


def record(
    connection: Connection,
    by: Actor | None,
    action: AuditAction,
    subject_id: str,
    *,
    project_id: str | None,
    detail: str | None = None,
) -> None:
    """Records nothing when `by` is None: a role that does its work."""
    if by is not None:
        record_all(connection, by, action, [(subject_id, project_id)], detail=detail)


def record_all(
    connection: Connection,
    by: Actor,
    action: AuditAction,
    subjects: Iterable[tuple[str, str | None]],
    *,
    detail: str | None = None,
) -> None:
    """Records the same action on many objects.

    Args:
        subjects: ids, each with the project it belongs to.
    """
    rows = [
        {
            "by_name": by.name,
            "by_hint": by.hint,
            "what": action.value,
            "in_project_id": project_id,
            "on_id": subject_id,
            "from_address": by.address,
            "by_request_id": by.request_id,
            "more": detail,
        }
        for subject_id, project_id in subjects
    ]
    if rows:
        connection.execute(_ADD, rows)


def _as_entry(row: Sequence[Any]) -> AuditEntry:
    sequence, at, name, hint, address, request_id, action, project_id, subject_id, detail = row
    return AuditEntry(
        sequence, at, Actor(name, hint, address, request_id), action, project_id, subject_id, detail
    )
