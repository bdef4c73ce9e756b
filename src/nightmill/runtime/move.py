"""`nightmill move`: moves a data folder with SQLite to a store in Postgres and to storage that all machines
reach.

Blobs are copied first, then the answers of unfinished batches, then all rows in one transaction. Until that
transaction commits, the data folder is unchanged and the same command continues the move. Afterwards the old
database has another name, so that no server uses it by mistake. The lock of the data folder is held, because
nothing may be moved while a server runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nightmill.blobs import Blobs
from nightmill.core.batch import Batch
from nightmill.core.segment import SegmentResult, lease_at
from nightmill.errors import SetupError
from nightmill.parts import Parts
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.storage import check_storage, open_storage, open_stored, prepare
from nightmill.settings import Settings
from nightmill.store.row_copy import MovedSegment, copy_rows, needed_blobs, unfinished_batches

MOVED = ".moved"


@dataclass(frozen=True, slots=True)
class MoveSummary:
    """What a move has copied."""

    rows: dict[str, int]
    blobs: int
    blob_bytes: int
    answers: int


async def move(source: Settings, target: Settings, *, say: Callable[[str], None]) -> MoveSummary:
    """Moves everything; returns what was copied.

    Args:
        source: settings of the data folder, with its SQLite.
        target: settings that the servers will run with.

    Raises:
        SetupError: there is no such folder, the folder is in use, or the new store is not empty.
    """
    database = source.folder / "nightmill.sqlite"
    if not database.is_file():
        raise SetupError(f"there is no nightmill database at {database}; name the data folder with --from")
    if target.is_embedded:
        raise SetupError("name where to move to: NIGHTMILL_STORE=postgresql://user@host/database")
    with locked_folder(source.folder):
        await prepare(source)
        await prepare(target)
        await check_storage(target)
        summary = await _move(source, target, say)
        # The last connection is closed, so the file is whole by itself.
        database.rename(database.with_name(database.name + MOVED))
    return summary


async def _move(source: Settings, target: Settings, say: Callable[[str], None]) -> MoveSummary:
    store = open_stored(source)
    old_blobs, old_parts = open_storage(source)
    new_blobs, new_parts = open_storage(target)
    is_same_place = target.blobs.url is None and _same(source.folder, target.folder)
    moved: dict[tuple[str, int], MovedSegment] = {}
    try:
        await store.leases.release_all()  # the lock proves that no process holds any
        keys = needed_blobs(source.store_url)
        blob_bytes = 0
        for number, key in enumerate(keys, 1):
            blob_bytes += await _copy_blob(old_blobs.plain, new_blobs.plain, key)
            if number % 1_000 == 0:
                say(f"{number} of {len(keys)} blobs are there")
        for batch in unfinished_batches(source.store_url):
            if not is_same_place:
                await new_parts.delete(batch.id)  # left by an earlier run
            after = -1
            while results := await store.segments.results(batch.id, after=after):
                after = results[-1].segment.number
                for result in results:
                    key = (batch.id, result.segment.number)
                    moved[key] = await _copy_answers(batch, result, old_parts, new_parts)
    finally:
        await store.close()
        await old_parts.close()
        await new_parts.close()
    rows = await copy_rows(source.store_url, target.store_url, moved)
    answers = sum(it.tally.answered for it in moved.values())
    return MoveSummary(rows, len(keys), blob_bytes, answers)


async def _copy_blob(old: Blobs, new: Blobs, key: str) -> int:
    """Copies a blob, unless an earlier run has; returns its size. The bytes under a key never change."""
    size_bytes = await old.size_bytes(key)
    if size_bytes is None:
        raise SetupError(f"blob {key} is missing; run 'nightmill check --repair' before moving")
    if await new.size_bytes(key) != size_bytes:
        writer = await new.open_writer(key)
        try:
            async for chunk in old.stream(key):
                await writer.write(chunk)
        except BaseException:
            await writer.abort()
            raise
        await writer.commit()
    if await new.size_bytes(key) != size_bytes:
        raise SetupError(f"blob {key} did not arrive whole; run the command again")
    return size_bytes


async def _copy_answers(batch: Batch, result: SegmentResult, old: Parts, new: Parts) -> MovedSegment:
    """Copies each answered line once, in one part, under a token that no process has held."""
    lease = lease_at(batch, result, token=result.token + 1)
    known: set[int] = set()
    writer = new.open(lease)
    try:
        async for record in old.read(tuple(await old.find(lease))):
            if record.ordinal in known:
                continue
            known.add(record.ordinal)
            writer.append(record.ordinal, record.output)
            if new.is_full:
                await new.room()
    finally:
        await writer.close()
    tally = writer.durable_tally
    if result.is_done and tally.answered != result.segment.count:
        name = f"{batch.id} segment {result.segment.number}"
        raise SetupError(f"{name} lacks answers; run 'nightmill check --repair' before moving")
    pinned = writer.pinned
    return MovedSegment(lease.token, () if pinned is None else (pinned,), tally)


def source_settings(target: Settings, folder: Path) -> Settings:
    """The settings of a server that uses the data folder alone."""
    blobs = target.blobs.model_copy(update={"url": None})
    return target.model_copy(update={"folder": folder, "store": None, "blobs": blobs})


def _same(one: Path, other: Path) -> bool:
    return one.absolute().resolve() == other.absolute().resolve()
