"""Reads which schema a database has, and decides whether this version of nightmill may work on it.

For a schema newer than this version knows, the record in the database decides (see `steps.refusal`). Nothing
is written here.
"""

from sqlalchemy import Connection, inspect, select, text

from nightmill.store import steps
from nightmill.store.schema import schema_compatibility
from nightmill.store.steps import COMPATIBILITY_TABLE, refusal


def version_of(connection: Connection) -> str | None:
    """None when there is no schema at all."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return _version(connection)


def schema_refusal(connection: Connection) -> str | None:
    """Why this version can't work on the database's schema; None when it can. A schema must exist."""
    found = _version(connection) or "0000"
    if found == steps.SCHEMA_VERSION:
        return None
    return refusal(found, _oldest(connection) if found > steps.SCHEMA_VERSION else None)


def _version(connection: Connection) -> str | None:
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _oldest(connection: Connection) -> str | None:
    if not inspect(connection).has_table(COMPATIBILITY_TABLE):
        return None
    return connection.execute(select(schema_compatibility.c.oldest)).scalar_one_or_none()
