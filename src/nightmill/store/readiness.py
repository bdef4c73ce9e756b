"""Checks at start that a database which many processes share can be used.

Only a database without any schema is changed: it gets one. An existing schema may be in use by other
processes and is left alone: `nightmill migrate` is a command of its own. A newer schema is accepted if it
records that this version may work on it. Nothing here waits or retries.
"""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from nightmill.errors import SetupError
from nightmill.store.clock import now
from nightmill.store.compatibility import schema_refusal, version_of
from nightmill.store.database import Database
from nightmill.store.database_url import open_database
from nightmill.store.migrate import migrate

CLOCK_TOLERANCE_S: Final = 30.0
"""Deadlines are set by the API's clock and checked by the database's: more difference is a setup error."""


async def make_ready(url: str, *, clock: Callable[[], float], busy_timeout_s: float) -> None:
    """Returns when processes of this version may work on the database.

    Raises:
        SetupError: the schema is older or newer, the clocks differ, or the database refuses the login.
        UnavailableError: the database can't be reached.
    """
    database = open_database(url, clock=clock, busy_timeout_s=busy_timeout_s)
    try:
        if await _of(database, version_of) is None:
            await migrate(url)
        elif (reason := await _of(database, schema_refusal)) is not None:
            raise SetupError(str(reason))
        before = clock()
        at_the_store = await _of(database, _now)
        _check_clock(before, at_the_store, clock())
    finally:
        await database.close()


async def _of(database: Database, body: Callable[[Connection], object]) -> object:
    try:
        return await database.read(body)
    except DBAPIError as error:
        code = getattr(error.orig, "sqlstate", None) or type(error.orig).__name__
        message = f"the store's database refuses to be read ({code}); check its URL and rights"
        raise SetupError(message) from error


def _now(connection: Connection) -> float:
    return float(connection.execute(select(now())).scalar_one())


def _check_clock(before: float, at_the_store: object, after: float) -> None:
    assert isinstance(at_the_store, float)
    if before - CLOCK_TOLERANCE_S <= at_the_store <= after + CLOCK_TOLERANCE_S:
        return
    apart_s = abs(at_the_store - before)
    raise SetupError(
        f"this machine's clock and the store's are {apart_s:.0f} s apart; set both by the same time server"
    )
