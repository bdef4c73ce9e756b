"""Postgres through asyncpg: the same functions as on SQLite, on an async engine.

No session state and no named statement is used, so a pooler may change the server connection with every
transaction. Named statements halve the work of Postgres for a lease: a URL of a direct connection, or of a
pooler that keeps them, may set how many with `prepared_statement_cache_size`. A transaction that was undone
by a deadlock or a lost connection runs again. The clock is the database's own.
"""

from collections.abc import Awaitable, Callable
from importlib import import_module
from itertools import count
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from nightmill.errors import SetupError, StorageFullError, UnavailableError
from nightmill.store.database import Body, P, T
from nightmill.store.steps import process_name

_POOL_SIZE: Final = 4
_TRIES: Final = 3
_PREPARED: Final = "prepared_statement_cache_size"
_UNDONE: Final = ("40001", "40P01")  # serialization failure, deadlock


def postgres_engine(url: URL, *, busy_timeout_s: float, command_timeout_s: float) -> AsyncEngine:
    """Connects at the first transaction.

    Raises:
        SetupError: asyncpg is not installed, or the URL has a wrong number of statements.
    """
    prepared = _prepared_statements(url)
    url = url.difference_update_query([_PREPARED])
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_size=_POOL_SIZE,
            max_overflow=0,
            pool_timeout=busy_timeout_s,
            hide_parameters=True,
            connect_args={
                "async_creator_fn": _connecting(url),
                "timeout": busy_timeout_s,
                "command_timeout": command_timeout_s,
                "statement_cache_size": 0,
                "prepared_statement_cache_size": prepared,
                "prepared_statement_name_func": _named() if prepared else _unnamed,
            },
        )
    except ImportError:
        raise SetupError("a store in Postgres needs: pip install 'nightmill[postgres]'") from None


def _prepared_statements(url: URL) -> int:
    size = url.query.get(_PREPARED, "0")
    if isinstance(size, str) and size.isdecimal():
        return int(size)
    raise SetupError(f"the store's URL asks for {_PREPARED} that is no whole number")


def _connecting(url: URL) -> Callable[..., Awaitable[Any]]:
    """The driver parses the URL itself: it supports libpq's options, such as `sslmode` and `sslrootcert`."""
    written = url.set(drivername="postgresql").render_as_string(hide_password=False)
    # A migration recognizes by this name which versions are still connected.
    named = {} if "application_name" in url.query else {"application_name": process_name()}

    async def connect(
        *, timeout: float, command_timeout: float, statement_cache_size: int, **_: object
    ) -> object:
        asyncpg: Any = import_module("asyncpg")  # an extra, and without types
        try:
            return await asyncpg.connect(
                written,
                timeout=timeout,
                command_timeout=command_timeout,
                statement_cache_size=statement_cache_size,
                server_settings=named,
            )
        except (ValueError, asyncpg.InterfaceError, asyncpg.UndefinedObjectError) as error:
            # Only the kind of the error is shown: the message may hold a piece of the URL.
            name = type(error).__name__
            raise SetupError(f"the store's URL asks Postgres for what it does not take ({name})") from None

    return connect


def _unnamed() -> str:
    return ""


def _named() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"nightmill_{next(numbers)}"


class PostgresDatabase:
    """A few connections, each for one transaction at a time."""

    def __init__(self, url: URL, *, busy_timeout_s: float, command_timeout_s: float | None = None) -> None:
        self._engine = postgres_engine(
            url, busy_timeout_s=busy_timeout_s, command_timeout_s=command_timeout_s or busy_timeout_s
        )
        # For one transaction: a process that is frozen in the middle must not keep its locks for ever.
        longest_ms = int(busy_timeout_s * 1_000)
        self._end_idle_transaction = text(f"SET LOCAL idle_in_transaction_session_timeout = {longest_ms}")

    async def read(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(body, *args, **kwargs)

    async def write(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        tries = 0
        while True:
            tries += 1
            is_committing = False
            try:
                async with self._engine.begin() as connection:
                    await connection.execute(self._end_idle_transaction)
                    result = await connection.run_sync(body, *args, **kwargs)
                    is_committing = True
                return result
            except DBAPIError as error:
                # A connection that broke before the commit took its transaction with it.
                is_undone = sqlstate(error) in _UNDONE or (error.connection_invalidated and not is_committing)
                if not is_undone or tries == _TRIES:
                    raise postgres_failure(error) from error
            except (OSError, TimeoutError, PoolTimeoutError) as error:
                raise unreachable() from error

    async def close(self) -> None:
        await self._engine.dispose()


def unreachable() -> UnavailableError:
    return UnavailableError("the store's Postgres can't be reached or doesn't answer; try again")


def sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def postgres_failure(error: DBAPIError) -> Exception:
    """The error to raise for a driver's error. It shows only codes and names, never a value."""
    code = sqlstate(error)
    cause: Any = error.orig.__cause__ if error.orig is not None else None
    if error.connection_invalidated:
        return unreachable()
    if code == "53100":
        return StorageFullError("the disk of the store's Postgres is full; make room and try again")
    match code[:2]:
        case "08" | "25" | "40" | "53" | "55" | "57" | "58":
            return UnavailableError(f"the store's Postgres can't be used now (SQLSTATE {code}); try again")
        case "23":
            rule = getattr(cause, "constraint_name", None)
            return ValueError(f"the store refuses what breaks one of its rules ({rule})")
        case "28" | "3D":
            return SetupError(f"the store's Postgres refuses the login (SQLSTATE {code}); check its URL")
        case "":
            return unreachable()
        case _:
            return error
