"""Moves a data folder with SQLite to a store in Postgres, and its bytes to the storage of a fleet.

Blobs are copied first, then the answers of unfinished batches, then all rows in one transaction. Until that
transaction commits, the data folder is as it was, and a second run continues where the first one ended. The
caller holds the data folder's lock, opens the stores, and renames the old database at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nightmill.blobs import Blobs, new_blob
from nightmill.core.segment import SegmentResult
from nightmill.errors import SetupError
from nightmill.parts import Parts, counted_parts, standing_records
from nightmill.store import Store
from nightmill.store.row_copy import MovedSegment, copy_rows, needed_blobs, unfinished_batches


@dataclass(frozen=True, slots=True)
class MoveSummary:
    """What a move has copied: rows by table, blobs, and answers of unfinished batches."""

    rows: dict[str, int]
    blobs: int
    blob_bytes: int
    answers: int


@dataclass(frozen=True, slots=True)
class MoveStorage:
    """One side of a move. `blobs` shows a list of pieces as the text it is."""

    store_url: str
    blobs: Blobs
    parts: Parts


async def move(
    store: Store,
    source: MoveStorage,
    target: MoveStorage,
    *,
    is_same_folder: bool,
    say: Callable[[str], None],
) -> MoveSummary:
    """Closes the store and both sides' parts before the rows are copied.

    Args:
        store: of the source. No process may hold leases in it.
        is_same_folder: both sides keep their parts in the same folder.
        say: prints progress.

    Raises:
        SetupError: the source lacks bytes, or the target's store is not empty.
    """
    moved: dict[tuple[str, int], MovedSegment] = {}
    try:
        await store.leases.release_all()
        keys = needed_blobs(source.store_url)
        blob_bytes = 0
        for number, key in enumerate(keys, 1):
            blob_bytes += await _copy_blob(source.blobs, target.blobs, key)
            if number % 1_000 == 0:
                say(f"{number} of {len(keys)} blobs are there")
        for batch in unfinished_batches(source.store_url):
            if not is_same_folder:
                await target.parts.delete(batch.id)  # left over from an earlier run
            after = -1
            while results := await store.segments.results(batch.id, after=after):
                after = results[-1].segment.number
                for result in results:
                    key = (batch.id, result.segment.number)
                    moved[key] = await _copy_answers(result, source.parts, target.parts)
    finally:
        await store.close()
        await source.parts.close()
        await target.parts.close()
    rows = await copy_rows(source.store_url, target.store_url, moved)
    answers = sum(it.tally.answered for it in moved.values())
    return MoveSummary(rows, len(keys), blob_bytes, answers)


async def _copy_blob(old: Blobs, new: Blobs, key: str) -> int:
    """Returns the blob's size. Skips a blob that an earlier run copied: bytes under a key never change."""
    size_bytes = await old.size_bytes(key)
    if size_bytes is None:
        raise SetupError(f"blob {key} is missing; run 'nightmill check --repair' before moving")
    if await new.size_bytes(key) != size_bytes:
        async with new_blob(new, key) as writer:
            async for chunk in old.stream(key):
                await writer.write(chunk)
    if await new.size_bytes(key) != size_bytes:
        raise SetupError(f"blob {key} did not arrive whole; run the command again")
    return size_bytes


async def _copy_answers(result: SegmentResult, old: Parts, new: Parts) -> MovedSegment:
    """Copies each answered line once, to one part under a token that no worker has held."""
    segment, token = result.segment, result.token + 1
    writer = new.open(segment, token)
    try:
        async for record in standing_records(old, await counted_parts(old, result, below=token)):
            writer.append(record.ordinal, record.output)
            if new.is_full:
                await new.room()
    finally:
        await writer.close()
    tally = writer.durable_tally
    if result.is_done and tally.answered != segment.count:
        name = f"{segment.batch_id} segment {segment.number}"
        raise SetupError(f"{name} lacks answers; run 'nightmill check --repair' before moving")
    pinned = writer.pinned
    return MovedSegment(token, () if pinned is None else (pinned,), tally)
