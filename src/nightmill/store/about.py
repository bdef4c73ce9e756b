"""What the database is: its kind, version and size, and the version of the schema."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from nightmill.store.compatibility import version_of
from nightmill.store.verbs import Verbs, read

_SQLITE_SIZE = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
_SQLITE_VERSION = text("SELECT sqlite_version()")
_POSTGRES_SIZE = text("SELECT pg_database_size(current_database())")
_POSTGRES_VERSION = text("SHOW server_version")


@dataclass(frozen=True, slots=True)
class DatabaseDescription:
    """What the database is.

    Args:
        database: `SQLite` or `Postgres`.
        size_bytes: of the whole database.
    """

    database: str
    database_version: str
    schema_version: str
    size_bytes: int


class About(Verbs):
    """The database itself."""

    @read
    @staticmethod
    def read(connection: Connection) -> DatabaseDescription:
        is_sqlite = connection.dialect.name == "sqlite"
        version = connection.execute(_SQLITE_VERSION if is_sqlite else _POSTGRES_VERSION).scalar_one()
        size_bytes = connection.execute(_SQLITE_SIZE if is_sqlite else _POSTGRES_SIZE).scalar_one()
        return DatabaseDescription(
            "SQLite" if is_sqlite else "Postgres", str(version), version_of(connection) or "", int(size_bytes)
        )
