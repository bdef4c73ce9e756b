"""Newest first, stable under inserts: pages by (created_at, sequence) behind the row a cursor names."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, bindparam, select, tuple_

from nightmill.errors import NotFoundError


def place_of(connection: Connection, table: Table, project_id: str, item_id: str) -> tuple[int, int]:
    """Where the row stands that a cursor names; tombstones count.

    Raises:
        NotFoundError: the project never had such a row.
    """
    found = connection.execute(
        select(table.c.created_at, table.c.sequence).where(
            table.c.id == bindparam("item_id"), table.c.project_id == bindparam("project_id")
        ),
        {"item_id": item_id, "project_id": project_id},
    ).one_or_none()
    if found is None:
        message = f"No {table.name} found with id '{item_id}' to list after."
        raise NotFoundError(message, param="after")
    return found.created_at, found.sequence


def place(table: Table) -> ColumnElement[Any]:
    return tuple_(table.c.created_at, table.c.sequence)


def named_place() -> ColumnElement[Any]:
    """The place to compare with, as the parameters `created_at` and `sequence`."""
    return tuple_(bindparam("after_created_at"), bindparam("after_sequence"))
