"""Brings a database to the schema this nightmill speaks.

Promise: one transaction per call, so a database is never between two schemas, and two processes that start
at once migrate it once. Not its duty: what the steps are (see `migrations/versions`).
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, insert, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from nightmill.core.audit import NIGHTMILL, Actor, AuditAction
from nightmill.errors import SetupError
from nightmill.store import audit
from nightmill.store.compatibility import misfit, version_of
from nightmill.store.connection import is_postgres, parse_url, sqlite_path
from nightmill.store.schema import metadata, schema_compatibility
from nightmill.store.sqlite import BUSY_TIMEOUT_S, sqlite_engine, sqlite_failure
from nightmill.store.steps import AUDITED_SINCE, SCHEMA_VERSION, Stage, next_stop, oldest_on, process_name

_MIGRATION_LOCK: Final = 0x6E696768746D  # any number that nothing else in the database locks
_STEP_TIMEOUT_S: Final = 3_600.0  # a step may build an index over a large table
_AT_WORK: Final = text(
    "SELECT application_name FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE :names"
)
_VERSION_TABLE: Final = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""  # as Alembic makes it
_SCRIPTS = Path(__file__).parent / "migrations"


async def migrate(url: str, *, stage: Stage | None = None, by: Actor = NIGHTMILL) -> str:
    """Creates or upgrades the schema of the database at `url`; its folder must exist. Says what it is now.

    An empty database gets the whole schema whatever the stage: nobody older can be at work on it.

    Args:
        stage: run only the steps that may run before, or after, the processes are replaced.
        by: for the audit log, which an upgrade stands in.

    Raises:
        SetupError: the database is of a nightmill that this one can't work with, the stage's turn has not
            come, or nightmills are at work that an after step would break.
        UnavailableError: the database can't be reached or is in use.
    """
    parsed = parse_url(url)
    if is_postgres(parsed):
        return await _migrate_postgres(parsed, stage, by)
    return await asyncio.to_thread(_migrate_sqlite, sqlite_path(parsed), stage, by)


async def _migrate_postgres(url: URL, stage: Stage | None, by: Actor) -> str:
    # Not everybody installs the driver.
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
    """Neither a first start nor a restart must wait for Alembic to be loaded: half a second of CPU."""
    found = version_of(connection)
    if found is None:
        create(connection)
        return SCHEMA_VERSION
    if found > SCHEMA_VERSION:
        if (reason := misfit(connection)) is not None:
            raise SetupError(reason)
        return found
    try:
        wanted = next_stop(found, stage)
    except ValueError as error:
        raise SetupError(str(error)) from None
    if wanted != found:
        oldest = oldest_on(wanted)
        if oldest > oldest_on(found):
            _refuse_while_older_ones_live(connection, oldest)
        upgrade(connection, to=wanted)
        _record(connection, oldest)
        if wanted >= AUDITED_SINCE:
            audit.record(
                connection, by, AuditAction.SCHEMA_MIGRATED, wanted, project_id=None, detail=f"from {found}"
            )
    return wanted


def _record(connection: Connection, oldest: str) -> None:
    connection.execute(delete(schema_compatibility))
    connection.execute(insert(schema_compatibility).values(oldest=oldest))


def _refuse_while_older_ones_live(connection: Connection, oldest: str) -> None:
    """Only Postgres can tell; over SQLite the folder lock proves that nobody is there."""
    if connection.dialect.name != "postgresql":
        return
    seen = connection.execute(_AT_WORK, {"names": process_name("%")}).scalars().all()
    older = sorted(name for name in seen if name < process_name(oldest))
    if older:
        raise SetupError(
            f"{len(older)} connections of older nightmills are open (the oldest: '{older[0]}'), which this"
            " step would break; end those processes, then run this again"
        )


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
    _record(connection, oldest_on(SCHEMA_VERSION))


def upgrade(connection: Connection, *, to: str = SCHEMA_VERSION) -> None:
    """Runs the missing steps, up to and with `to`, inside the connection's transaction."""
    # Only a process that migrates needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
