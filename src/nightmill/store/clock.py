"""The store's clock, as SQL: `now()` in a statement is the time of its transaction.

Postgres uses the database's own clock. SQLite connections carry the clock that the store was opened with as a
function: SQLite has no clock that a test could move.
"""

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import BigInteger, Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

Clock = Callable[[], float]

CLOCK_FUNCTION: Final = "nightmill_now"


class now(FunctionElement[float]):  # noqa: N801 - named as the SQL function
    """Unix seconds by the store's clock."""

    inherit_cache = True
    type: TypeEngine[float] = Double()


@compiles(now, "sqlite")
def _now_in_sqlite(*_: Any, **__: Any) -> str:
    return f"{CLOCK_FUNCTION}()"


@compiles(now, "postgresql")
def _now_in_postgres(*_: Any, **__: Any) -> str:
    return "extract(epoch FROM now())::double precision"


class stamp(FunctionElement[int]):  # noqa: N801 - as above
    """Whole Unix seconds by the store's clock."""

    inherit_cache = True
    type: TypeEngine[int] = BigInteger()


@compiles(stamp, "sqlite")
def _stamp_in_sqlite(*_: Any, **__: Any) -> str:
    return f"CAST({CLOCK_FUNCTION}() AS INTEGER)"


@compiles(stamp, "postgresql")
def _stamp_in_postgres(*_: Any, **__: Any) -> str:
    return "floor(extract(epoch FROM now()))::bigint"
