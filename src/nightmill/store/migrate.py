"""Brings a database to the schema this nightmill speaks.

Promise: one transaction per call, so a database is never between two schemas, and two processes that start
at once migrate it once. Not its duty: what the steps are (see `migrations/versions`).
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from nightmill.errors import SetupError
from nightmill.store.connection import is_postgres, parse_url, sqlite_path
from nightmill.store.schema import metadata
from nightmill.store.sqlite import BUSY_TIMEOUT_S, sqlite_engine, sqlite_failure

SCHEMA_VERSION: Final = "0002"
"""The newest step in `migrations/versions`."""

_MIGRATION_LOCK: Final = 0x6E696768746D  # any number that nothing else in the database locks
_STEP_TIMEOUT_S: Final = 3_600.0  # a step may build an index over a large table
_VERSION_TABLE: Final = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""  # as Alembic makes it
_SCRIPTS = Path(__file__).parent / "migrations"


async def migrate(url: str) -> None:
    """Creates or upgrades the schema of the database at `url`; its folder must exist.

    Raises:
        SetupError: the database was written by a newer nightmill.
        UnavailableError: the database can't be reached or is in use.
    """
    parsed = parse_url(url)
    if is_postgres(parsed):
        await _migrate_postgres(parsed)
    else:
        await asyncio.to_thread(_migrate_sqlite, sqlite_path(parsed))


async def _migrate_postgres(url: URL) -> None:
    # Not everybody installs the driver.
    from nightmill.store.postgres import PostgresDatabase  # noqa: PLC0415

    database = PostgresDatabase(url, busy_timeout_s=BUSY_TIMEOUT_S, command_timeout_s=_STEP_TIMEOUT_S)
    try:
        await database.write(_lock_and_migrate)
    finally:
        await database.close()


def _lock_and_migrate(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    _migrate(connection)


def _migrate_sqlite(path: Path) -> None:
    if not path.parent.is_dir():
        raise SetupError(f"the folder {path.parent} for the store's database does not exist; create it")
    engine = sqlite_engine(path, begin="BEGIN IMMEDIATE", clock=time.time)
    try:
        with engine.begin() as connection:
            _migrate(connection)
    except (DBAPIError, OSError) as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()


def _migrate(connection: Connection) -> None:
    """Neither a first start nor a restart must wait for Alembic to be loaded: half a second of CPU."""
    if not inspect(connection).has_table("alembic_version"):
        create(connection)
    elif not is_current(connection):
        upgrade(connection)


def is_current(connection: Connection) -> bool:
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return found == [SCHEMA_VERSION]


def create(connection: Connection) -> None:
    """Makes at once what all steps together would make in an empty database."""
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table))
        # By name, as the steps do: a set has another order in each process, and of two indexes that would do
        # SQLite takes the one made last.
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index))
    connection.execute(text(_VERSION_TABLE))
    connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:version)"), {"version": SCHEMA_VERSION}
    )


def upgrade(connection: Connection) -> None:
    """Runs the missing steps inside the connection's transaction."""
    # Only a process that migrates needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"the store's schema {found} is newer than this nightmill knows ({max(known)});"
            " install the nightmill that wrote it, or restore a backup"
        )
    command.upgrade(config, "head")
