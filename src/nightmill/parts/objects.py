"""Parts as rows of small objects in a bucket: each flush puts one more object, and none is written again.

The objects of a part are `parts/<part key>/<number>`, numbered from 0 without a gap: the next object is put
only after the one before is durable. So a key and a length pin exactly the first few objects, and objects
that a late writer adds behind them are never read. No key comes from a listing, which may lag behind: all
keys follow from the segment and the token.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from io import BytesIO
from itertools import count

from nightmill.blobs.bucket import Bucket, PastTheEndError
from nightmill.core.segment import PinnedPart, Segment
from nightmill.errors import DamageError, LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId
from nightmill.parts.record import PartRecord, PartTail, TextPlace, part_key, read_records, whole_bytes
from nightmill.parts.writer import PartWriter

_PREFIX = "parts"
_READS_AT_ONCE = 8
_READ_BYTES = 8 << 20
_TAIL_BYTES = 1 << 20
_READ_TRIES = 4
_READ_AGAIN_S = 0.5


class ObjectParts:
    """Parts in a bucket. One task per open writer collects records for `interval_s`, or until `part_bytes`
    are queued, then puts them as one object.

    While a put fails no record is lost and none counts: the same bytes are put again every `retry_s` under
    the same key, `stalled` gives the reason, and `room` blocks. A repeated put is harmless: a put whose
    response was lost has stored the same bytes.

    Args:
        bucket: shared with the blobs.
        puts_at_once: over all writers; each writer has at most one put in progress.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        interval_s: float,
        part_bytes: int,
        buffer_bytes: int,
        puts_at_once: int,
        retry_s: float = 1.0,
    ) -> None:
        self._bucket = bucket
        self._interval_s = interval_s
        self._part_bytes = part_bytes
        self._buffer_bytes = buffer_bytes
        self._retry_s = retry_s
        self.queued_bytes = 0
        self._slots = asyncio.Semaphore(puts_at_once)
        self._rows: dict[PartWriter, _ObjectRow] = {}
        self._failing: dict[PartWriter, str] = {}
        self._last_failure = "no answer in time"
        self._closing = asyncio.Event()
        self._commit_ended = asyncio.Event()

    @property
    def reads_at_once(self) -> int:
        return _READS_AT_ONCE

    @property
    def stalled(self) -> str | None:
        return next(iter(self._failing.values()), None)

    @property
    def is_full(self) -> bool:
        return self.queued_bytes > self._buffer_bytes or self.stalled is not None

    async def room(self) -> None:
        while self.is_full:
            for writer, row in self._rows.items():
                if writer.queued_bytes:
                    row.hurry.set()
            await self._next_commit()

    def open(self, segment: Segment, token: int) -> PartWriter:
        if self._closing.is_set():
            raise ValueError("the parts are closed")
        writer = PartWriter(self, segment, token, full_bytes=self._part_bytes)
        if any(other.name == writer.name for other in self._rows):
            raise ValueError(f"part {writer.name} is already open")
        row = self._rows[writer] = _ObjectRow()
        task = self._put_until_closed(writer, row)
        row.task = asyncio.get_running_loop().create_task(task, name=f"part {writer.name}")
        return writer

    async def find(
        self, segment: Segment, *, below: int, pinned: Sequence[PinnedPart] = ()
    ) -> Sequence[PinnedPart]:
        found = list(pinned)
        pinned_keys = {part.key for part in pinned}
        for token in range(below - 1, 0, -1):
            for copy in count():
                key = part_key(segment, token, copy)
                if key in pinned_keys:
                    continue
                length_bytes = await self._whole_bytes(key)
                if not length_bytes:
                    break
                found.append(PinnedPart(key, length_bytes))
        return found

    async def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[Sequence[PartRecord]]:
        for part in parts:
            end = number = 0
            async with aclosing(self._objects(part.key, part.length_bytes)) as contents:
                async for content in contents:
                    length_bytes = min(len(content), part.length_bytes - end)
                    key = _object_key(part.key, number)
                    number += 1
                    rows = list(read_records(BytesIO(content), length_bytes, key=key))
                    yield [record for _, record in rows]
                    read_bytes = rows[-1][0] if rows else 0
                    end += read_bytes
                    if read_bytes != length_bytes:
                        break
            if end != part.length_bytes:
                raise _damage(part, end)

    async def tail(self, tail: PartTail) -> tuple[Sequence[PartRecord], PartTail]:
        records: list[PartRecord] = []
        length_bytes, number = 0, tail.object_count
        while length_bytes < _TAIL_BYTES:
            content = await self._get(_object_key(tail.key, number))
            if content is None:
                break
            rows = list(read_records(BytesIO(content), len(content)))
            if not rows or rows[-1][0] != len(content):
                break
            records += [record for _, record in rows]
            length_bytes += len(content)
            number += 1
        return records, PartTail(tail.key, tail.length_bytes + length_bytes, number)

    async def text(self, place: TextPlace) -> bytes:
        try:
            text, _ = await self._bucket.get_range(place.key, place.offset, place.length_bytes)
        except (FileNotFoundError, PastTheEndError):
            text = b""
        if len(text) != place.length_bytes:
            end = place.offset + place.length_bytes
            raise _damage(PinnedPart(place.key, end), place.offset)
        return text

    async def batches(self) -> Sequence[BatchId]:
        return [BatchId(name) for name in await self._bucket.folders_under(_PREFIX)]

    async def delete(self, batch_id: BatchId) -> None:
        """Objects that a lagging listing hides stay for the next call: `batches` names the batch again."""
        keys = [key async for key in self._bucket.keys_under(f"{_PREFIX}/{batch_id}")]
        failpoint("blob.before_delete")
        await self._bucket.delete(keys)
        failpoint("blob.deleted")

    async def close(self) -> None:
        self._closing.set()
        rows = dict(self._rows)
        for writer, row in rows.items():
            writer.end()
            row.wake()
        try:
            await asyncio.gather(*(row.task for row in rows.values() if row.task is not None))
        finally:
            self._wake_waiters()
        lost = sum(writer.pending_count for writer in rows)
        if lost:
            raise UnavailableError(
                f"{lost} answers could not be written ({self._last_failure}); their lines are sent again"
            )

    # --- the sink of the writers ---------------------------------------------------------------------

    def queued(self, writer: PartWriter) -> None:
        row = self._rows[writer]
        row.has_records.set()
        if writer.queued_bytes >= self._part_bytes:
            row.hurry.set()

    async def commit(self, writer: PartWriter) -> None:
        row = self._rows.get(writer)
        if row is not None and writer.queued_bytes:
            row.hurry.set()
        await self._next_commit()

    async def release(self, writer: PartWriter) -> None:
        row = self._rows.get(writer)
        if row is not None:
            row.wake()
        while writer in self._rows:
            await self._next_commit()

    async def _next_commit(self) -> None:
        """Waits until a put has succeeded or failed, or a writer has ended."""
        if not self._rows:
            raise UnavailableError("answers are no longer written; the lines without one are sent again")
        await self._commit_ended.wait()

    def _wake_waiters(self) -> None:
        self._commit_ended.set()
        self._commit_ended.clear()

    # --- writing -------------------------------------------------------------------------------------

    async def _put_until_closed(self, writer: PartWriter, row: "_ObjectRow") -> None:
        try:
            while await self._has_more(writer, row):
                content = b"".join(writer.take())
                if not writer.queued_bytes:
                    row.has_records.clear()
                    row.hurry.clear()
                if not await self._put_until_stored(writer, row, content):
                    return
                del content
                row.number += 1
                writer.settle()
                self._wake_waiters()
        finally:
            writer.fail(UnavailableError(f"part {writer.key} is no longer written"))
            self._failing.pop(writer, None)
            del self._rows[writer]
            self._wake_waiters()

    async def _has_more(self, writer: PartWriter, row: "_ObjectRow") -> bool:
        """Waits until records are to be put; False when the writer ends and has none."""
        if not writer.is_ending:
            await row.has_records.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await row.hurry.wait()
        return bool(writer.queued_bytes)

    async def _put_until_stored(self, writer: PartWriter, row: "_ObjectRow", content: bytes) -> bool:
        """False when the put was given up: the parts are being closed, or another process has the part."""
        while True:
            is_last_try = self._closing.is_set()
            try:
                async with self._slots:
                    await self._put(writer, row, content)
            except LeaseLost as lost:
                writer.fail(lost)
                return False
            except UnavailableError as error:
                self._failing[writer] = self._last_failure = error.message
                self._wake_waiters()
                if is_last_try:
                    return False
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._retry_s):
                        await self._closing.wait()
            else:
                self._failing.pop(writer, None)
                return True

    async def _put(self, writer: PartWriter, row: "_ObjectRow", content: bytes) -> None:
        failpoint("part.before_write")
        while True:
            key = _object_key(writer.key, row.number)
            try:
                await self._bucket.put_new(key, content)
            except FileExistsError:
                if await self._get(key) == content:
                    break  # an earlier put stored it, and the response was lost
                if row.number:
                    raise LeaseLost(f"another process writes part {writer.key}") from None
                # After a restore of an older database the same tokens are given out again.
                row.copy += 1
                writer.use_copy(row.copy)
            else:
                break
        failpoint("part.synced")

    # --- reading -------------------------------------------------------------------------------------

    async def _whole_bytes(self, key: str) -> int:
        """The length of the part's objects, up to one that is missing or not made of whole records."""
        length_bytes = 0
        async with aclosing(self._objects(key, None)) as contents:
            async for content in contents:
                end = whole_bytes(BytesIO(content), len(content))
                length_bytes += end
                if end != len(content):
                    break
        return length_bytes

    async def _objects(self, key: str, length_bytes: int | None) -> AsyncGenerator[bytes]:
        """The part's objects in order, several fetched at once, up to a pinned length or a missing object."""
        number, end, largest, at_once = 0, 0, 1, 1
        while length_bytes is None or end < length_bytes:
            if length_bytes is not None:
                at_once = -(-(length_bytes - end) // largest) if number else 1
            at_once = max(1, min(at_once, _READS_AT_ONCE, _READ_BYTES // largest))
            contents = await self._fetched(key, number, at_once, is_pinned=length_bytes is not None)
            for place, content in enumerate(contents):
                if content is None:
                    if length_bytes is None or place == 0:
                        return
                    break  # fetched again, with more tries, as the first of the next group
                number, end, largest = number + 1, end + len(content), max(largest, len(content))
                yield content
                if length_bytes is not None and end >= length_bytes:
                    return
            at_once *= 2

    async def _fetched(self, key: str, number: int, at_once: int, *, is_pinned: bool) -> list[bytes | None]:
        try:
            async with asyncio.TaskGroup() as group:
                fetching = [
                    group.create_task(
                        self._fetch(_object_key(key, number + place), is_pinned=is_pinned and place == 0)
                    )
                    for place in range(at_once)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in fetching]

    async def _fetch(self, key: str, *, is_pinned: bool) -> bytes | None:
        """Tries several times for a pinned object, which must exist: just after a failover the object store
        may deny that it does."""
        for attempt in range(_READ_TRIES if is_pinned else 1):
            if attempt:
                await asyncio.sleep(_READ_AGAIN_S)
            content = await self._get(key)
            if content is not None:
                return content
        return None

    async def _get(self, key: str) -> bytes | None:
        try:
            return await self._bucket.get(key)
        except FileNotFoundError:
            return None


class _ObjectRow:
    """What the sink keeps for one open writer: `number` is that of the next object.

    An object that is put again must hold the same bytes: another process may have pinned its length.
    """

    __slots__ = ("copy", "has_records", "hurry", "number", "task")

    def __init__(self) -> None:
        self.number = 0
        self.copy = 0
        self.has_records = asyncio.Event()
        self.hurry = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Ends the task's wait for records and for the interval."""
        self.has_records.set()
        self.hurry.set()


def _object_key(key: str, number: int) -> str:
    return f"{_PREFIX}/{key}/{number}"


def _damage(part: PinnedPart, end: int) -> DamageError:
    return DamageError(
        f"part {part.key} is damaged behind byte {end} of {part.length_bytes} that were in the object store;"
        " bring its objects back from a copy, or cancel the batch"
    )
