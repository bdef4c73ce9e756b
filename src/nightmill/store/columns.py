"""The metadata that all tables share, and the kinds of columns and indexes that they are made of."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    MetaData,
    Text,
    text,
)

metadata = MetaData()

_Sequence = BigInteger().with_variant(Integer(), "sqlite")


def one_of(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def sequence_column() -> Column[int]:
    return Column("sequence", _Sequence, primary_key=True, autoincrement=True)


def text_column(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def optional_text(name: str) -> Column[str]:
    return Column(name, Text, nullable=True)


def number_column(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def counter_column(name: str, *rules: CheckConstraint) -> Column[int]:
    return Column(name, BigInteger, *rules, nullable=False, server_default=text("0"))


def optional_number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=True)


def seconds_column(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def partial_index(name: str, *columns: str | ColumnElement[Any], where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))
