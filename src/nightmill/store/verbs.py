"""How a verb of the store is written: once, as a plain function of a `Connection` in the class of its noun.

    class Uploads(Verbs):
        @write
        @staticmethod
        def expire(connection: Connection) -> int:
            return connection.execute(_EXPIRE).rowcount

`await store.uploads.expire()` runs the function in one transaction, whole or not at all: in a thread of the
store on SQLite, on an asyncpg connection on Postgres. `Uploads.expire(connection)` is the plain function, for
a verb that needs another verb inside its own transaction.

A function may run more than once for one call (see `database`), so it may only act on its connection.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, overload

from nightmill.store.database import Body, Database, P, T


class Verbs:
    """The verbs of one noun, over one database."""

    def __init__(self, database: Database) -> None:
        self.database = database


class _Verb(Generic[P, T]):
    """A descriptor: the plain function on the class, the call as a transaction on an instance."""

    def __init__(self, body: Body[P, T]) -> None:
        self._body: Body[P, T] = getattr(body, "__wrapped__", body)  # past the staticmethod
        self.__doc__ = body.__doc__

    @overload
    def __get__(self, verbs: None, owner: type) -> Body[P, T]: ...
    @overload
    def __get__(self, verbs: Verbs, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, verbs: Verbs | None, owner: type) -> Body[P, T] | Callable[P, Coroutine[Any, Any, T]]:
        return self._body if verbs is None else self._transaction(verbs.database)

    def _transaction(self, database: Database) -> Callable[P, Coroutine[Any, Any, T]]:
        raise NotImplementedError


class read(_Verb[P, T]):  # noqa: N801 - a decorator
    """A verb that writes nothing."""

    def _transaction(self, database: Database) -> Callable[P, Coroutine[Any, Any, T]]:
        return partial(database.read, self._body)


class write(_Verb[P, T]):  # noqa: N801 - a decorator
    """A verb whose transaction is durable when the call returns."""

    def _transaction(self, database: Database) -> Callable[P, Coroutine[Any, Any, T]]:
        return partial(database.write, self._body)
