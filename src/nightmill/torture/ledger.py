"""Between a death and the next start: which answers are on disk, and which lines were sent but have none.

It reads the data folder as the next server would: pinned parts by their pinned length, others up to their
last whole record. Nobody else may have the folder open meanwhile.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nightmill.core.batch import Batch
from nightmill.core.segment import lease_at
from nightmill.ids import ProjectId
from nightmill.parts import FolderParts
from nightmill.settings import Settings
from nightmill.store import Store, open_store
from nightmill.torture.proof import SETTLED_CHANGED, Proof

TAG = "tag"
"""The metadata key under which a batch carries the first half of its lines' custom_ids."""

PROJECT = ProjectId("default")
MOST = 100_000


@dataclass(frozen=True, slots=True)
class Death:
    """What a server that was killed whole left undone."""

    undone: frozenset[str]
    """Lines that were sent and have no answer on disk: they will be sent again."""
    unsettled: int
    """Lines of batches in progress without an answer on disk."""


class Ledger:
    """Answers that were once seen on disk must be the ones in the output.

    Args:
        folder: the server's data folder.
    """

    def __init__(self, folder: Path, proof: Proof) -> None:
        self._folder = folder
        self._proof = proof
        self.settled: dict[str, str] = {}
        """custom_id -> request id of the answer."""
        self._read: set[tuple[str, int]] = set()

    async def read(self, markers: Iterable[str]) -> Death:
        """To be called while every process of the server is dead."""
        settings = Settings(folder=self._folder)
        if not (self._folder / "nightmill.sqlite").exists():
            return Death(frozenset(), 0)
        store = open_store(settings.store_url)
        parts = FolderParts(self._folder / "blobs" / "parts", commit_interval_s=0.0, buffer_bytes=1)
        try:
            page = await store.batches.list(PROJECT, limit=MOST)
            unsettled = 0
            for batch in page.items:
                if batch.status == "in_progress":
                    unsettled += batch.total
                if not batch.status.is_terminal:
                    on_disk = await self._settled(batch, store, parts)
                    unsettled -= on_disk if batch.status == "in_progress" else 0
        finally:
            await parts.close()
            await store.close()
        over = {
            (batch.metadata or {}).get(TAG) for batch in page.items if batch.status.is_terminal
        }  # their lines are not sent again, and their parts may be gone
        undone = {marker for marker in markers if marker not in self.settled and _tag(marker) not in over}
        return Death(frozenset(undone), unsettled)

    async def _settled(self, batch: Batch, store: Store, parts: FolderParts) -> int:
        count = 0
        results = await store.segments.results(batch.id, limit=MOST)
        for result in results:
            key = (batch.id, result.segment.number)
            if key in self._read:
                count += result.segment.count
                continue
            found = (
                result.pinned
                if result.is_done
                else tuple(await parts.find(lease_at(batch, result, token=result.token + 1)))
            )
            ordinals: set[int] = set()
            async for record in parts.read(found):
                ordinals.add(record.ordinal)
                self.note(record.output.text)
            count += len(ordinals)
            if result.is_done:
                self._read.add(key)
        return count

    def note(self, text: bytes) -> None:
        """An output line that is settled now."""
        row = json.loads(text)
        if row["response"] is None:
            return
        custom_id, request_id = row["custom_id"], row["response"]["request_id"]
        before = self.settled.setdefault(custom_id, request_id)
        if before != request_id:
            self._proof.breach(SETTLED_CHANGED, f"{custom_id} had answer {before} on disk, then {request_id}")


def tag_of(number: int) -> str:
    return f"t{number}"


def _tag(marker: str) -> str:
    return marker.partition("-")[0]
