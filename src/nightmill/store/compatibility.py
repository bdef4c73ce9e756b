"""What a database says of its schema: which version it has, and which nightmills may work on it.

Promise: it only reads. A nightmill that meets a newer schema asks the database, not its own knowledge,
whether it may stay. Not its duty: the rule itself (`steps`).
"""

from typing import Final

from sqlalchemy import Connection, Text, column, inspect, select, table, text

from nightmill.store.steps import COMPATIBILITY_TABLE, SCHEMA_VERSION, refusal

_OLDEST: Final = select(column("oldest", Text())).select_from(table(COMPATIBILITY_TABLE))


def version_of(connection: Connection) -> str | None:
    """None when there is no schema at all."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return _version(connection)


def misfit(connection: Connection) -> str | None:
    """Why this nightmill can't work on the database's schema; None when it can. There must be a schema."""
    found = _version(connection) or "0000"
    if found == SCHEMA_VERSION:
        return None
    return refusal(found, _oldest(connection) if found > SCHEMA_VERSION else None)


def all_know(connection: Connection, version: str) -> bool:
    """Whether every nightmill that may be at work here knows the schema step."""
    oldest = _oldest(connection)
    return oldest is not None and oldest >= version


def _version(connection: Connection) -> str | None:
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _oldest(connection: Connection) -> str | None:
    if not inspect(connection).has_table(COMPATIBILITY_TABLE):
        return None
    return connection.execute(_OLDEST).scalar_one_or_none()
