"""The interface of the two databases: run a function as one transaction, whole or not at all."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")
Body = Callable[Concatenate[Connection, P], T]


class Database(Protocol):
    """Runs transactions. A body may run more than once, so it may only act on its connection."""

    async def read(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `body`, which writes nothing, on committed data."""
        ...

    async def write(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `body` in one transaction that is durable on return."""
        ...

    async def close(self) -> None: ...
