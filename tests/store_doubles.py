"""Stores that fail on purpose, or have one verb replaced."""

from collections.abc import Callable
from copy import copy
from typing import Any

from nightmill.core.segment import Segment
from nightmill.ids import BatchId
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


def even_segments(batch_id: BatchId, *, total: int, lines_per_segment: int) -> list[Segment]:
    """The segments that intake cuts for `total` short lines."""
    firsts = range(0, total, lines_per_segment)
    return [
        Segment(batch_id, number, first, min(lines_per_segment, total - first))
        for number, first in enumerate(firsts)
    ]
