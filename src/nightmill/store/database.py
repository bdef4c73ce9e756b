"""What a database does for the store: it runs a body whole or not at all."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")
Body = Callable[Concatenate[Connection, P], T]


class Database(Protocol):
    """Runs transactions. A body may be run more than once, so all it does is speak to its connection."""

    async def read(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `body` on what is committed; it writes nothing."""
        ...

    async def write(self, body: Body[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `body` in one transaction that is durable on return."""
        ...

    async def close(self) -> None: ...
