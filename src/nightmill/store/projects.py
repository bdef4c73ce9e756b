"""Projects: what the operator has set for a project, what it stores, and the lock for decisions about it.

A limit is checked under the lock of the project's row, from sums over its unfinished batches and its counter
of stored bytes; where no limit is set no lock is taken. On SQLite the only writer is the lock.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, text, union, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.limits import Consumption, Limits, OpenWork, ProjectRules
from nightmill.ids import ProjectId
from nightmill.store import audit, schema
from nightmill.store.paging import Page
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import api_key, batch, file, project
from nightmill.store.verbs import Verbs, read, write

_RULES: Final = {
    it.name: it.name if it.name.endswith("_ttl_s") else f"{it.name}_limit" for it in fields(ProjectRules)
}
_SELECT = select(*(project.c[column] for column in _RULES.values())).where(
    project.c.id == bindparam("of_project_id")
)
_STORED = select(project.c.stored_bytes).where(project.c.id == bindparam("of_project_id"))
_LOCK = (
    select(project.c.id, project.c.stored_bytes)
    .where(project.c.id.in_(bindparam("of_project_ids", expanding=True)))
    .order_by(project.c.id)
    .with_for_update()
)
_ADD = insert_if_absent(project, {"id": bindparam("new_project_id")})
_CHANGE = (
    update(project)
    .where(project.c.id == bindparam("of_project_id"))
    .values({column: bindparam(f"new_{name}") for name, column in _RULES.items()})
)
_ADD_BYTES = (
    update(project)
    .where(project.c.id == bindparam("of_project_id"))
    .values(stored_bytes=project.c.stored_bytes + bindparam("more_bytes"))
)
_REMOVE_BYTES = (
    update(project)
    .where(project.c.id == bindparam("of_project_id"))
    .values(stored_bytes=project.c.stored_bytes - bindparam("fewer_bytes"))
)
_RECOUNT_BYTES = update(project).values(
    stored_bytes=select(func.coalesce(func.sum(file.c.size_bytes), 0))
    .where(file.c.project_id == project.c.id, file.c.deleted_at.is_(None))
    .scalar_subquery()
)
_is_open = (batch.c.project_id == bindparam("of_project_id"), text("batch." + schema.IS_UNFINISHED))
_OPEN = select(
    func.count(), func.coalesce(func.sum(batch.c.total), 0), func.coalesce(func.sum(batch.c.input_bytes), 0)
).where(*_is_open)
_known = union(
    select(project.c.id).where(project.c.id > bindparam("after_id")),
    select(api_key.c.project_id).where(api_key.c.project_id > bindparam("after_id")),
).subquery()
_KNOWN = select(_known.c.id).order_by(_known.c.id).limit(bindparam("page_rows"))
_RULES_OF = select(
    project.c.id, project.c.stored_bytes, *(project.c[column] for column in _RULES.values())
).where(project.c.id.in_(bindparam("of_project_ids", expanding=True)))
_OPEN_OF = (
    select(
        batch.c.project_id,
        func.count(),
        func.coalesce(func.sum(batch.c.total), 0),
        func.coalesce(func.sum(batch.c.input_bytes), 0),
    )
    .where(
        batch.c.project_id.in_(bindparam("of_project_ids", expanding=True)),
        text("batch." + schema.IS_UNFINISHED),
    )
    .group_by(batch.c.project_id)
)
_KEYS_OF = (
    select(api_key.c.project_id, func.count())
    .where(
        api_key.c.project_id.in_(bindparam("of_project_ids", expanding=True)), api_key.c.revoked_at.is_(None)
    )
    .group_by(api_key.c.project_id)
)
_ENQUEUED = (
    select(batch.c.model, func.sum(batch.c.enqueued_tokens))
    .where(*_is_open, batch.c.enqueued_tokens > 0)
    .group_by(batch.c.model)
)


@dataclass(frozen=True, slots=True)
class ProjectOverview:
    """A project in the list of all. `keys` counts those that are not revoked."""

    id: ProjectId
    rules: ProjectRules
    open: OpenWork
    stored_bytes: int
    keys: int


class Projects(Verbs):
    """Limits of projects, and how much of them is used."""

    @read
    @staticmethod
    def rules(connection: Connection, project_id: ProjectId) -> ProjectRules:
        """What was set for the project; nothing for an unknown project."""
        row = connection.execute(_SELECT, {"of_project_id": project_id}).one_or_none()
        return ProjectRules() if row is None else ProjectRules(*row)

    @write
    @staticmethod
    def set_rules(
        connection: Connection, project_id: ProjectId, rules: ProjectRules, *, by: Actor | None = None
    ) -> None:
        locked_bytes(connection, project_id)
        given = {f"new_{name}": getattr(rules, name) for name in _RULES}
        connection.execute(_CHANGE, {"of_project_id": project_id, **given})
        changed = ", ".join(
            f"{name}={given[f'new_{name}']}" for name in _RULES if given[f"new_{name}"] is not None
        )
        audit.record(
            connection,
            by,
            AuditAction.PROJECT_CHANGED,
            project_id,
            project_id=project_id,
            detail=changed or "as the settings say",
        )

    @read
    @staticmethod
    def list(connection: Connection, *, after: str = "", limit: int = 50) -> Page[ProjectOverview]:
        """The projects that have a key, a file or a rule, by id.

        Args:
            after: the id of the last project of the page before.
        """
        found = connection.execute(_KNOWN, {"after_id": after, "page_rows": limit + 1}).scalars().all()
        given = {"of_project_ids": found[:limit]}
        rows: dict[str, Sequence[Any]] = {row[0]: row for row in connection.execute(_RULES_OF, given)}
        opened = {
            row[0]: OpenWork(row[1], int(row[2]), int(row[3])) for row in connection.execute(_OPEN_OF, given)
        }
        keys = {row[0]: int(row[1]) for row in connection.execute(_KEYS_OF, given)}
        items = [
            ProjectOverview(
                ProjectId(it),
                ProjectRules(*rows[it][2:]) if it in rows else ProjectRules(),
                opened.get(it, OpenWork()),
                rows[it][1] if it in rows else 0,
                keys.get(it, 0),
            )
            for it in found[:limit]
        ]
        return Page(tuple(items), has_more=len(found) > limit)

    @read
    @staticmethod
    def consumption(connection: Connection, project_id: ProjectId) -> Consumption:
        """How much of its limits the project uses now."""
        stored_bytes = connection.execute(_STORED, {"of_project_id": project_id}).scalar_one_or_none()
        opened = open_of(connection, project_id)
        return Consumption(opened, stored_bytes or 0, enqueued_tokens(connection, project_id))


def limits_of(connection: Connection, project_id: ProjectId, defaults: Limits) -> Limits:
    return Projects.rules(connection, project_id).limits(defaults)


def locked_bytes(connection: Connection, project_id: str) -> int:
    """Locks the project's row until the transaction ends and returns its stored bytes. Adds a missing row."""
    given = {"of_project_ids": [project_id]}
    row = connection.execute(_LOCK, given).one_or_none()
    if row is None:
        connection.execute(_ADD[connection.dialect.name], {"new_project_id": project_id})
        row = connection.execute(_LOCK, given).one()
    return row.stored_bytes


def lock(connection: Connection, project_ids: Collection[str]) -> None:
    """Locks in one order, so that two transactions that lock several projects never deadlock."""
    connection.execute(_LOCK, {"of_project_ids": sorted(project_ids)}).all()


def add_bytes(connection: Connection, project_id: str, size_bytes: int) -> None:
    given = {"of_project_id": project_id, "more_bytes": size_bytes}
    if connection.execute(_ADD_BYTES, given).rowcount == 0:
        connection.execute(_ADD[connection.dialect.name], {"new_project_id": project_id})
        connection.execute(_ADD_BYTES, given)


def remove_bytes(connection: Connection, project_id: str, size_bytes: int) -> None:
    connection.execute(_REMOVE_BYTES, {"of_project_id": project_id, "fewer_bytes": size_bytes})


def recount_bytes(connection: Connection) -> None:
    connection.execute(_RECOUNT_BYTES)


def open_of(connection: Connection, project_id: str) -> OpenWork:
    batches, lines, size_bytes = connection.execute(_OPEN, {"of_project_id": project_id}).one()
    return OpenWork(batches, int(lines), int(size_bytes))


def enqueued_tokens(connection: Connection, project_id: str) -> dict[str | None, int]:
    """Of unfinished batches, by model; None stands for batches whose lines name several models."""
    rows = connection.execute(_ENQUEUED, {"of_project_id": project_id})
    return {model: int(tokens) for model, tokens in rows}
