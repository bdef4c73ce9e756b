"""A copy of the whole database, taken while other processes write to it.

The copy is one committed state, in one file, on stable storage when `copy_database` returns. The blobs that
the rows reference are copied elsewhere.
"""

import os
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from nightmill.errors import SetupError
from nightmill.store.database_url import is_postgres, parse_url, sqlite_path
from nightmill.store.inventory import Inventory
from nightmill.store.sqlite import BUSY_TIMEOUT_S, sqlite_failure, sqlite_library


def database_file(url: str) -> Path:
    """The path of a SQLite store's file.

    Raises:
        SetupError: the store is not in SQLite, or its file does not exist yet.
    """
    parsed = parse_url(url)
    if is_postgres(parsed):
        message = "a Postgres store is backed up and checked by Postgres's own tools; see docs/operations.md"
        raise SetupError(message)
    path = sqlite_path(parsed)
    if not path.is_file():
        raise SetupError(f"there is no nightmill database at {path}; name the data folder with --folder")
    return path


def copy_database(url: str, target: Path) -> None:
    """Copies the database of a data folder as of one moment, also while a server writes to it.

    Args:
        target: must not exist yet.

    Raises:
        SetupError: there is no database at `url`, or it is damaged beyond reading.
        UnavailableError: the database is locked against readers.
    """
    source_file = database_file(url)
    module: Any = sqlite_library().module
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with (
            closing(module.connect(str(source_file), timeout=BUSY_TIMEOUT_S, isolation_level=None)) as source,
            closing(module.connect(str(target), isolation_level=None)) as copy,
        ):
            source.backup(copy)
            # The copy inherits WAL mode; in DELETE mode it is one file and can be opened read-only.
            copy.execute("PRAGMA journal_mode=DELETE")
    except module.Error as error:
        raise sqlite_failure(error) from error
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(copy: Path) -> Generator[Inventory]:
    """The contents of a copy that no process writes to."""
    module: Any = sqlite_library().module

    def connect() -> Any:
        address = f"file:{quote(str(copy.absolute()))}?mode=ro"
        return module.connect(address, uri=True, isolation_level=None, check_same_thread=False)

    engine = create_engine(
        "sqlite://", module=module, creator=connect, poolclass=StaticPool, hide_parameters=True
    )
    try:
        with engine.connect() as connection:
            yield Inventory(connection)
    except DBAPIError as error:
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()
