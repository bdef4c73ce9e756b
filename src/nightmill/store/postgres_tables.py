"""Lists the tables of a Postgres database, and drops those of nightmill; other tables are never touched."""

from sqlalchemy import Connection, inspect, text

from nightmill.store.batch_index_schema import drop_functions
from nightmill.store.database_url import is_postgres, parse_url
from nightmill.store.migrate import metadata
from nightmill.store.postgres import PostgresDatabase

_TIMEOUT_S = 60.0
_VERSION = "alembic_version"


def is_shared(url: str) -> bool:
    """Whether the URL names a database that many processes share. Raises SetupError for a wrong URL."""
    return is_postgres(parse_url(url))


async def tables_in(url: str) -> list[str]:
    """Raises SetupError and UnavailableError as every call to the store does."""
    database = PostgresDatabase(parse_url(url), busy_timeout_s=_TIMEOUT_S)
    try:
        return await database.read(_tables)
    finally:
        await database.close()


async def drop_tables(url: str) -> None:
    database = PostgresDatabase(parse_url(url), busy_timeout_s=_TIMEOUT_S)
    try:
        await database.write(_drop)
    finally:
        await database.close()


def _tables(connection: Connection) -> list[str]:
    return sorted(inspect(connection).get_table_names())


def _drop(connection: Connection) -> None:
    metadata.drop_all(connection)
    drop_functions(connection)
    connection.execute(text(f"DROP TABLE IF EXISTS {_VERSION}"))
