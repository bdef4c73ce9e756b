"""What is pinned while the fleet runs, and so must be the answer in the end.

A pinned part is settled whatever happens to its writer: whoever comes next finds it under that name and
length. Not its duty: parts that nobody has pinned yet, whose writer may be at work.
"""

import asyncio
from contextlib import suppress

from nightmill.core.batch import Batch
from nightmill.errors import DamageError, UnavailableError
from nightmill.parts import Parts
from nightmill.store import Store
from nightmill.torture.ledger import MOST, PROJECT, Ledger
from nightmill.torture.proof import SETTLED_CHANGED, Proof

_PAUSE_S = 0.5


class Settled:
    """Looks past every link.

    Args:
        ledger: gets each answer once.
    """

    def __init__(self, store: Store, parts: Parts, ledger: Ledger, proof: Proof) -> None:
        self._store = store
        self._parts = parts
        self._ledger = ledger
        self._proof = proof
        self._read: set[tuple[str, int]] = set()

    async def keep_looking(self) -> None:
        while True:
            with suppress(UnavailableError):  # while Postgres or the bucket is restarted
                page = await self._store.batches.list(PROJECT, limit=MOST)
                for batch in page.items:
                    if not batch.status.is_terminal:
                        await self._look_at(batch)
            await asyncio.sleep(_PAUSE_S)

    async def _look_at(self, batch: Batch) -> None:
        for result in await self._store.segments.results(batch.id, limit=MOST):
            new = [part for part in result.pinned if (part.key, part.length_bytes) not in self._read]
            try:
                async for record in self._parts.read(new):
                    self._ledger.note(record.output.text)
            except (DamageError, FileNotFoundError) as error:
                # The parts of a batch that has ended meanwhile may be gone.
                now = await self._store.batches.get(PROJECT, batch.id)
                if now is not None and not now.status.is_terminal:
                    self._proof.breach(SETTLED_CHANGED, f"a pinned part does not read back: {error}")
                return
            self._read.update((part.key, part.length_bytes) for part in new)
