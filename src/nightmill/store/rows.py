"""Rows that several nouns share: of a dataclass, many rows in portions, and a row that may exist already."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from enum import Enum
from itertools import islice
from typing import Any, Final, TypeVar

from sqlalchemy import Column, Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite

T = TypeVar("T")

ROWS_AT_ONCE: Final = 1_000
"""A batch of ten million lines has 20,000 segments; a portion keeps a command below its timeout."""


def columns_of(kind: type[Any], table: Table) -> tuple[Column[Any], ...]:
    """The columns with the names of the fields of a dataclass, in the order of the fields."""
    return tuple(table.c[field.name] for field in fields(kind))


def row_of(new: Any) -> dict[str, Any]:
    """The fields of a dataclass as values of the columns with their names."""
    values = ((field.name, getattr(new, field.name)) for field in fields(new))
    return {name: value.value if isinstance(value, Enum) else value for name, value in values}


def portions(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while portion := list(islice(left, ROWS_AT_ONCE)):
        yield portion


def insert_all(connection: Connection, statement: Insert, rows: Iterable[Mapping[str, Any]]) -> None:
    for portion in portions(rows):
        connection.execute(statement, portion)


def insert_if_absent(table: Table, values: Mapping[str, Any]) -> Mapping[str, Insert]:
    """By the name of the dialect: an insert that changes nothing where the row exists.

    On Postgres it waits for a transaction that is inserting the same row.
    """
    return {
        "sqlite": sqlite.insert(table).values(values).on_conflict_do_nothing(),
        "postgresql": postgresql.insert(table).values(values).on_conflict_do_nothing(),
    }
