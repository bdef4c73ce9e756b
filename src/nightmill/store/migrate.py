"""Brings a database to the schema that this version of nightmill uses.

Each call is one transaction, so a database is never between two schemas, and of two processes that start at
once only one migrates. What the steps do is in `migrations/versions`.
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, delete, insert, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from nightmill.core.audit import NIGHTMILL, Actor, AuditAction
from nightmill.errors import SetupError
from nightmill.store import (
    audit,
    batch_index_schema,
    batch_watch_schema,
    bulk_action_schema,
    schema,
    steps,
    upstream_schema,
    webhook_schema,
)
from nightmill.store.columns import metadata
from nightmill.store.compatibility import schema_refusal, version_of
from nightmill.store.database_url import is_postgres, parse_url, sqlite_path
from nightmill.store.schema import schema_compatibility
from nightmill.store.sqlite import BUSY_TIMEOUT_S, sqlite_engine, sqlite_failure
from nightmill.store.steps import Stage, next_stop, oldest_on, process_name

_MIGRATION_LOCK: Final = 0x6E696768746D  # any number that nothing else in the database locks
_STEP_TIMEOUT_S: Final = 3_600.0  # a step may build an index over a large table
_CONNECTED: Final = text(
    "SELECT application_name FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE :names"
)
_VERSION_TABLE: Final = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""  # as Alembic makes it
_SCRIPTS = Path(__file__).parent / "migrations"
TABLES: Final = (
    schema,
    batch_index_schema,
    batch_watch_schema,
    upstream_schema,
    webhook_schema,
    bulk_action_schema,
)
"""The modules that define tables. Importing them completes `metadata`."""


async def migrate(url: str, *, stage: Stage | None = None, by: Actor = NIGHTMILL) -> str:
    """Creates or upgrades the schema of the database at `url` and returns the schema's version.

    The folder of a SQLite file must exist. An empty database gets the whole schema whatever the stage: no
    process of an older version can be using an empty database.

    Args:
        stage: run only the steps that may run before, or after, the processes are replaced.
        by: the actor that the audit log names for an upgrade.

    Raises:
        SetupError: the schema is one that this version can't work with, the stage may not run yet, or
            processes of an older version are connected that an after step would break.
        UnavailableError: the database can't be reached or is in use.
    """
    parsed = parse_url(url)
    if is_postgres(parsed):
        return await _migrate_postgres(parsed, stage, by)
    return await asyncio.to_thread(_migrate_sqlite, sqlite_path(parsed), stage, by)


async def _migrate_postgres(url: URL, stage: Stage | None, by: Actor) -> str:
    # The driver is an optional dependency.
    from nightmill.store.postgres import PostgresDatabase  # noqa: PLC0415

    database = PostgresDatabase(url, busy_timeout_s=BUSY_TIMEOUT_S, command_timeout_s=_STEP_TIMEOUT_S)
    try:
        return await database.write(_lock_and_migrate, stage, by)
    finally:
        await database.close()


def _lock_and_migrate(connection: Connection, stage: Stage | None, by: Actor) -> str:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    return _migrate(connection, stage, by)


def _migrate_sqlite(path: Path, stage: Stage | None, by: Actor) -> str:
    if not path.parent.is_dir():
        raise SetupError(f"the folder {path.parent} for the store's database does not exist; create it")
    engine = sqlite_engine(path, begin="BEGIN IMMEDIATE", clock=time.time)
    try:
        with engine.begin() as connection:
            return _migrate(connection, stage, by)
    except (DBAPIError, OSError) as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()


def _migrate(connection: Connection, stage: Stage | None, by: Actor) -> str:
    """Loads Alembic only for an upgrade: loading takes half a second of CPU, too much for every start."""
    found = version_of(connection)
    if found is None:
        create(connection)
        return steps.SCHEMA_VERSION
    if found > steps.SCHEMA_VERSION:
        if (reason := schema_refusal(connection)) is not None:
            raise SetupError(reason)
        return found
    try:
        wanted = next_stop(found, stage)
    except ValueError as error:
        raise SetupError(str(error)) from None
    if wanted != found:
        oldest = oldest_on(wanted)
        if oldest > oldest_on(found):
            _refuse_while_older_processes_are_connected(connection, oldest)
        upgrade(connection, to=wanted)
        _record_oldest(connection, oldest)
        audit.record(
            connection, by, AuditAction.SCHEMA_MIGRATED, wanted, project_id=None, detail=f"from {found}"
        )
    return wanted


def _record_oldest(connection: Connection, oldest: str) -> None:
    connection.execute(delete(schema_compatibility))
    connection.execute(insert(schema_compatibility).values(oldest=oldest))


def _refuse_while_older_processes_are_connected(connection: Connection, oldest: str) -> None:
    """Checks Postgres only: over SQLite the lock on the data folder excludes other processes."""
    if connection.dialect.name != "postgresql":
        return
    names = connection.execute(_CONNECTED, {"names": process_name("%")}).scalars().all()
    older = sorted(name for name in names if name < process_name(oldest))
    if older:
        raise SetupError(
            f"{len(older)} connections of older nightmills are open (the oldest: '{older[0]}'), which this"
            " step would break; end those processes, then run this again"
        )


def create(connection: Connection) -> None:
    """Makes in one go what all steps together would make in an empty database."""
    create_tables(connection, metadata)
    batch_index_schema.create_triggers(connection)
    connection.execute(text(_VERSION_TABLE))
    connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:version)"), {"version": steps.SCHEMA_VERSION}
    )
    _record_oldest(connection, oldest_on(steps.SCHEMA_VERSION))


def create_tables(connection: Connection, tables: MetaData) -> None:
    for table in tables.sorted_tables:
        connection.execute(CreateTable(table))
        # By name: a set has another order in each process, and where two indexes fit a statement SQLite uses
        # the one that was created last.
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index))


def upgrade(connection: Connection, *, to: str) -> None:
    """Runs the missing steps, up to and including `to`, inside the connection's transaction."""
    # Loading takes half a second of CPU, and only an upgrade needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
