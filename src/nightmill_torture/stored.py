"""Reads which answers are durable: while a fleet runs, or on one machine between a death and the next start.

An answer that was seen durable must be the answer in the output. A pinned part is durable, whatever happens
to its writer. While a writer may be at work, only pinned parts are read. After the death of all writers, all
parts are read up to their last whole record, as the next server does.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nightmill.core.batch import Batch
from nightmill.core.segment import PinnedPart, SegmentResult
from nightmill.errors import DamageError, UnavailableError
from nightmill.ids import BatchId, ProjectId
from nightmill.parts import Parts, counted_parts, standing_records
from nightmill.store import Store
from nightmill_torture.proof import SETTLED_CHANGED, Proof
from nightmill_torture.record import Record
from nightmill_torture.storage import Storage

TAG = "tag"
"""The metadata key under which a batch carries the first half of its lines' custom_ids."""

_PROJECT = ProjectId("default")
_MOST = 100_000
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Death:
    """What a killed server left undone."""

    undone: frozenset[str]
    """Lines that were sent and have no durable answer: they will be sent again."""
    unanswered: int = 0
    """Lines of batches in progress without a durable answer."""


class StoredAnswers:
    """Adds each durable answer to the record. The store and the parts are opened without links."""

    def __init__(self, storage: Storage, record: Record, proof: Proof) -> None:
        self._storage = storage
        self._record = record
        self._proof = proof
        self._read_parts: dict[tuple[BatchId, int], tuple[Sequence[PinnedPart], int]] = {}
        """Of each segment, the parts that were read and how many lines they answer."""

    async def keep_reading(self) -> None:
        """Reads pinned parts of batches that have not ended, while the fleet runs."""
        async with self._storage.opened() as (store, parts):
            while True:
                with suppress(UnavailableError):  # while Postgres or the bucket is restarted
                    for batch in (await store.batches.list(_PROJECT, limit=_MOST)).items:
                        if not batch.status.is_terminal:
                            await self._read(batch, store, parts, has_writers=True)
                await asyncio.sleep(_PAUSE_S)

    async def read_after_death(self, markers: Iterable[str]) -> Death:
        """Call only while every process of the server is dead. `markers` are the lines that were sent."""
        if not (self._storage.settings.folder / "nightmill.sqlite").exists():
            return Death(frozenset())
        unanswered = 0
        async with self._storage.opened() as (store, parts):
            batches = (await store.batches.list(_PROJECT, limit=_MOST)).items
            for batch in batches:
                if not batch.status.is_terminal:
                    answered = await self._read(batch, store, parts, has_writers=False)
                    unanswered += batch.total - answered if batch.status == "in_progress" else 0
        # Lines of ended batches are not sent again, and their parts may be deleted.
        ended = {(batch.metadata or {}).get(TAG) for batch in batches if batch.status.is_terminal}
        return Death(
            frozenset(
                marker
                for marker in markers
                if marker not in self._record.answers and marker.partition("-")[0] not in ended
            ),
            unanswered,
        )

    async def _read(self, batch: Batch, store: Store, parts: Parts, *, has_writers: bool) -> int:
        """Returns how many lines of the batch have a durable answer."""
        answered = 0
        for result in await store.segments.results(batch.id, limit=_MOST):
            try:
                answered += await self._answers_in(result, parts, has_writers=has_writers)
            except (DamageError, FileNotFoundError) as error:
                # The parts of a batch that has ended meanwhile may be deleted.
                now = await store.batches.get(_PROJECT, batch.id)
                if now is not None and not now.status.is_terminal:
                    self._proof.breach(SETTLED_CHANGED, f"a durable part can't be read: {error}")
                break
        return answered

    async def _answers_in(self, result: SegmentResult, parts: Parts, *, has_writers: bool) -> int:
        """Adds the answers of a segment that stand, and returns how many there are."""
        durable = await _durable_parts(result, parts, has_writers=has_writers)
        segment = result.segment.batch_id, result.segment.number
        read, count = self._read_parts.get(segment, ((), 0))
        if read != durable:
            count = 0
            async for record in standing_records(parts, durable):
                count += 1
                if conflict := self._record.add_answer(record.output.text):
                    self._proof.breach(SETTLED_CHANGED, conflict)
            self._read_parts[segment] = durable, count
        return count


async def _durable_parts(result: SegmentResult, parts: Parts, *, has_writers: bool) -> Sequence[PinnedPart]:
    if has_writers:
        return result.pinned
    return await counted_parts(parts, result, below=result.token + 1)
