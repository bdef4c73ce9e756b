"""SQLite: a thread owns its connection, and a transaction runs whole in that thread.

A transaction costs one switch of threads and is never left half open by a cancelled caller. A transaction
that can't commit raises `UnavailableError` and leaves nothing behind.

A store must not be used after a fork: each process opens its own. Nor may a process open the file with a
second SQLite library (such as the one of the standard library): the two don't see each other's locks, and
closing the file in one of them drops the locks of both. `sqlite_library()` says which library is in use.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep, time
from types import ModuleType
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from nightmill.errors import SetupError, StorageFullError, UnavailableError
from nightmill.store.clock import CLOCK_FUNCTION, Clock
from nightmill.store.database import Body, P, T

try:
    import pysqlite3.dbapi2 as _newest_sqlite  # pyright: ignore[reportMissingTypeStubs] - the wheel has none
except ImportError:  # the wheel exists for Linux only
    _newest_sqlite = sqlite3

BUSY_TIMEOUT_S: Final = 10.0
_WAL_RESET_FIXED: Final = (3, 51, 3)
_JOURNAL_RETRY_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteLibrary:
    """The SQLite library that this process uses."""

    module: ModuleType
    version: tuple[int, int, int]

    @property
    def journal_mode(self) -> str:
        """WAL only where the WAL-reset fix is in: older ones can corrupt it under two processes."""
        return "WAL" if self.version >= _WAL_RESET_FIXED else "TRUNCATE"


def sqlite_library(module: ModuleType = _newest_sqlite) -> SqliteLibrary:
    return SqliteLibrary(module=module, version=module.sqlite_version_info)


def sqlite_engine(
    path: Path,
    *,
    begin: str,
    clock: Clock,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    library: SqliteLibrary | None = None,
) -> Engine:
    """An engine with one connection, for one thread at a time. Each transaction starts with `begin`."""
    library = library or sqlite_library()
    now = 0.0

    def connect() -> Any:
        _make_private(path)
        connection = library.module.connect(
            str(path), timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _set_journal_mode(connection, library.journal_mode, deadline=monotonic() + busy_timeout_s)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            connection.close()
            raise
        # Frozen for the transaction, so SQLite may read it once for a whole statement.
        connection.create_function(CLOCK_FUNCTION, 0, lambda: now, deterministic=True)
        return connection

    # A StaticPool keeps the one connection until the engine is disposed of.
    engine = create_engine(
        "sqlite://", module=library.module, creator=connect, poolclass=StaticPool, hide_parameters=True
    )

    def start(connection: Connection) -> None:
        nonlocal now
        connection.exec_driver_sql(begin)
        now = clock()

    event.listen(engine, "begin", start)
    return engine


def _make_private(path: Path) -> None:
    """SQLite would make a file that every user can read; its journals take the mode of the file."""
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _set_journal_mode(connection: Any, mode: str, *, deadline: float) -> None:
    """SQLite doesn't wait for a lock when it changes the journal, so two first starts at once would clash."""
    while connection.execute("PRAGMA journal_mode").fetchone()[0].upper() != mode:
        try:
            connection.execute(f"PRAGMA journal_mode={mode}")
        except Exception as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_BUSY" or monotonic() > deadline:
                raise
            sleep(_JOURNAL_RETRY_S)


class _Lane:
    """One thread with one connection; transactions pass through it one after another."""

    def __init__(self, name: str, engine: Engine, *, busy_timeout_s: float) -> None:
        self._engine = engine
        self._busy_timeout_s = busy_timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"nightmill-store-{name}")

    async def run(self, work: Callable[[Connection], T]) -> T:
        called_at = monotonic()

        def transaction() -> T:
            # A lock held by another process costs the queued calls one timeout together, not one each.
            if monotonic() - called_at > self._busy_timeout_s:
                raise UnavailableError("the store is busy: the call waited too long for its turn; try again")
            with self._engine.connect() as connection, connection.begin():
                return work(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
        except DBAPIError as error:
            raise sqlite_failure(error) from error

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=False)


class SqliteDatabase:
    """One lane for writing and one for reading: a poll never waits for a commit."""

    def __init__(self, path: Path, *, clock: Clock, busy_timeout_s: float) -> None:
        def lane(name: str, begin: str) -> _Lane:
            engine = sqlite_engine(path, begin=begin, clock=clock, busy_timeout_s=busy_timeout_s)
            return _Lane(name, engine, busy_timeout_s=busy_timeout_s)

        self._reader = lane("reader", "BEGIN")
        self._writer = lane("writer", "BEGIN IMMEDIATE")

    async def read(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._reader.run(lambda connection: body(connection, *args, **kwargs))

    async def write(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._writer.run(lambda connection: body(connection, *args, **kwargs))

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()


def compact(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> int:
    """Gives the unused pages of a database file back to the disk; returns the bytes that were freed.

    Writes the whole database anew, for which the disk needs as much room once more. No server may use it.

    Raises:
        UnavailableError, StorageFullError: another process uses the database, or the disk is full.
    """
    before_bytes = path.stat().st_size
    engine = sqlite_engine(path, begin="", clock=time, busy_timeout_s=busy_timeout_s)
    try:
        connection = engine.raw_connection()
        connection.cursor().execute("VACUUM")
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    except Exception as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()
    return before_bytes - path.stat().st_size


def sqlite_failure(error: Exception) -> Exception:
    """The error to raise for a driver's error. It shows only the code: the message may hold a value."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code: str = getattr(cause, "sqlite_errorname", "") or ""
    match code.removeprefix("SQLITE_").split("_")[0]:
        case "BUSY" | "LOCKED":
            return UnavailableError("the store's database is locked by another process; try again")
        case "FULL":
            return StorageFullError("the disk of the store's database is full; make room and try again")
        case "IOERR" | "CANTOPEN" | "READONLY" | "PERM" | "NOMEM" | "PROTOCOL":
            return UnavailableError(f"the store's database can't be used now ({code}); try again")
        case "CORRUPT" | "NOTADB":
            return SetupError(f"the store's database is damaged ({code}); restore it from a backup")
        case "CONSTRAINT":
            return ValueError(f"the store refuses what breaks one of its rules ({cause})")
        case _:
            return error
