"""Pages by (created_at, sequence) behind the row that a cursor names: stable while rows are inserted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, select, tuple_

from nightmill.errors import NotFoundError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `has_more` says whether more items follow the last one.

    Args:
        cursor: the place behind the last item, where it is not its id alone.
    """

    items: tuple[T, ...]
    has_more: bool
    cursor: str | None = None


def page_of(
    connection: Connection,
    table: Table,
    first: Select[Any],
    following: Select[Any],
    *,
    parameters: Mapping[str, Any],
    project_id: str,
    after: str | None,
    limit: int,
    as_item: Callable[[Any], T],
) -> Page[T]:
    """The first page, or the page behind an item.

    Args:
        first: the query of the first page, with the parameter `page_rows` as its limit.
        following: that of a later page, which compares with `named_place()`.
        parameters: of both queries.
        after: the id of the last item of the page before.

    Raises:
        NotFoundError: the project never had the item `after`.
    """
    given, query = {**parameters, "page_rows": limit + 1}, first
    if after is not None:
        created_at, sequence = place_of(connection, table, project_id, after)
        given |= {"after_created_at": created_at, "after_sequence": sequence}
        query = following
    rows = connection.execute(query, given).all()
    return Page(tuple(as_item(row) for row in rows[:limit]), has_more=len(rows) > limit)


def place_of(connection: Connection, table: Table, project_id: str | None, item_id: str) -> tuple[int, int]:
    """The place of the row that a cursor names; a tombstone has a place too.

    Args:
        project_id: None for a row of any project.

    Raises:
        NotFoundError: the project never had such a row.
    """
    query = select(table.c.created_at, table.c.sequence).where(table.c.id == item_id)
    if project_id is not None:
        query = query.where(table.c.project_id == project_id)
    found = connection.execute(query).one_or_none()
    if found is None:
        message = f"No {table.name} found with id '{item_id}' to list after."
        raise NotFoundError(message, param="after")
    return found.created_at, found.sequence


def place(table: Table) -> ColumnElement[Any]:
    return tuple_(table.c.created_at, table.c.sequence)


def named_place() -> ColumnElement[Any]:
    """The place to compare with, as the parameters `created_at` and `sequence`."""
    return tuple_(bindparam("after_created_at"), bindparam("after_sequence"))
