"""Stores that fail on purpose, or have one verb replaced."""

from collections.abc import Callable
from copy import copy
from typing import Any

from nightmill.store import Store


def with_verb(store: Store, noun: str, verb: str, replacement: Callable[..., Any]) -> Any:
    """A copy of `store` whose `store.<noun>.<verb>` is `replacement`; the original stays as it is."""
    changed, verbs = copy(store), copy(getattr(store, noun))
    setattr(verbs, verb, replacement)
    setattr(changed, noun, verbs)
    return changed


class _BrokenDatabase:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def read(self, *_: Any, **__: Any) -> Any:
        raise self._error

    write = read

    async def close(self) -> None: ...


def broken_store(error: Exception) -> Store:
    """A store whose every verb raises `error`."""
    return Store(_BrokenDatabase(error))
