"""Deletes orphaned blobs: those that no row references.

A process that dies between writing a blob and inserting its row leaves one. Only a blob that two sweeps an
hour apart found unreferenced is deleted; from the last byte of a blob to the row that references it takes
moments. Blobs that a row references but nothing uses any more are deleted by `maintenance`, and so are parts.
"""

from collections.abc import AsyncIterator, Callable
from typing import Final

from nightmill.blobs import Blobs
from nightmill.roles.attempt_log import ATTEMPTS_FOLDER
from nightmill.store import Store

_FOLDERS: Final = ("files", "lines", "uploads")
_KEYS_PER_QUERY: Final = 1_000


class OrphanSweep:
    """Finds blobs that no row references and deletes those that it finds twice in a row.

    Args:
        pause_s: time between two sweeps. Memory grows with the number of orphaned blobs, not of all blobs.
    """

    def __init__(
        self, *, store: Store, blobs: Blobs, monotonic: Callable[[], float], pause_s: float = 3_600.0
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._monotonic = monotonic
        self._pause_s = pause_s
        self._next_sweep = 0.0
        self._suspects: set[str] = set()

    @property
    def is_due(self) -> bool:
        return self._monotonic() >= self._next_sweep

    async def sweep(self) -> int:
        """Deletes the blobs that this sweep and the previous one found unreferenced; returns their number."""
        unreferenced: set[str] = set()
        async for keys in self._keys():
            unreferenced.update(keys.difference(await self._store.blob_references.referenced(keys)))
        orphans = unreferenced & self._suspects
        for key in orphans:
            await self._blobs.delete(key)
        self._suspects = unreferenced - orphans
        await self._delete_attempts()
        self._next_sweep = self._monotonic() + self._pause_s
        return len(orphans)

    async def _delete_attempts(self) -> None:
        """Deletes the recorded attempts of batches whose files are deleted. No row references these blobs."""
        batch_ids: set[str] = set()
        async for key in self._blobs.keys_under(ATTEMPTS_FOLDER):
            batch_ids.add(key.split("/")[1])
        for batch_id in await self._store.blob_references.ended_without_files(batch_ids):
            await self._blobs.delete_under(f"{ATTEMPTS_FOLDER}/{batch_id}")

    async def _keys(self) -> AsyncIterator[set[str]]:
        keys: set[str] = set()
        for folder in _FOLDERS:
            async for key in self._blobs.keys_under(folder):
                keys.add(key)
                if len(keys) == _KEYS_PER_QUERY:
                    yield keys
                    keys = set()
        if keys:
            yield keys
