"""Removes bytes that nothing names: what a process left that died between writing a blob and its row.

Promise: only a blob that two looks an hour apart found unnamed goes; from the last byte of a blob to the row
that names it is a matter of moments. Not its duty: what a row names and nobody needs (`warden`), and parts.
"""

from collections.abc import AsyncIterator, Callable
from typing import Final

from nightmill.blobs import Blobs
from nightmill.store import Store

_FOLDERS: Final = ("files", "lines", "uploads")
_AT_ONCE: Final = 1_000


class OrphanSweep:
    """Args:
    pause_s: time between two looks. Memory follows the number of orphaned blobs, not that of blobs.
    """

    def __init__(
        self, *, store: Store, blobs: Blobs, monotonic: Callable[[], float], pause_s: float = 3_600.0
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._monotonic = monotonic
        self._pause_s = pause_s
        self._next_look = 0.0
        self._unnamed: set[str] = set()

    @property
    def is_due(self) -> bool:
        return self._monotonic() >= self._next_look

    async def look(self) -> int:
        """Says how many blobs it removed."""
        unnamed: set[str] = set()
        async for keys in self._keys():
            unnamed.update(keys.difference(await self._store.blob_references.referenced(keys)))
        gone = unnamed & self._unnamed
        for key in gone:
            await self._blobs.delete(key)
        self._unnamed = unnamed - gone
        self._next_look = self._monotonic() + self._pause_s
        return len(gone)

    async def _keys(self) -> AsyncIterator[set[str]]:
        keys: set[str] = set()
        for folder in _FOLDERS:
            async for key in self._blobs.keys_under(folder):
                keys.add(key)
                if len(keys) == _AT_ONCE:
                    yield keys
                    keys = set()
        if keys:
            yield keys
