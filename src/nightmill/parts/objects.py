"""Parts as small objects of a bucket: every flush puts one more, none is ever written again.

A part's objects are `parts/<part key>/<number>`, numbered from 0 without a gap: the next one is put only
after the one before is durable. So key and length pin exactly the first few, and whatever a late holder adds
behind them is never read. Nothing here trusts a listing: the keys follow from the lease.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from io import BytesIO
from itertools import count

from nightmill.blobs.bucket import Bucket
from nightmill.core.segment import Lease, PinnedPart
from nightmill.errors import DamageError, LeaseLost, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId
from nightmill.parts.object_writer import ObjectPartWriter
from nightmill.parts.protocol import PartRecord
from nightmill.parts.record import read_records
from nightmill.parts.writer import part_key

_PREFIX = "parts"
_READ_AT_ONCE = 8
_READ_BYTES = 8 << 20
_LOOKS = 4
_LOOK_AGAIN_S = 0.5


class ObjectParts:
    """Each open writer gathers answers for `interval_s`, or until it has `part_bytes`, then puts them.

    While a put fails nothing is lost and nothing counts: the same bytes are put again every `retry_s` under
    the same key, `stalled` says why, and `room` blocks. Repeating is harmless: a put whose answer was lost
    has left the very bytes that the next one brings.

    Args:
        bucket: shared with the blobs.
        puts_at_once: over all writers; one writer has one under way at most.
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
        self._writers: dict[str, ObjectPartWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: dict[ObjectPartWriter, str] = {}
        self._reason = "no answer in time"
        self._closing = asyncio.Event()
        self._turn: asyncio.Future[None] | None = None

    @property
    def reads_at_once(self) -> int:
        return _READ_AT_ONCE

    @property
    def stalled(self) -> str | None:
        return next(iter(self._failing.values()), None)

    def open(self, lease: Lease, on_commit: Callable[[int], None] | None = None) -> ObjectPartWriter:
        """Raises ValueError while another writer is open under the same token."""
        if self._closing.is_set():
            raise ValueError("the parts are closed")
        name = part_key(lease, lease.token, 0)
        if name in self._writers:
            raise ValueError(f"part {name} is already open")
        writer = ObjectPartWriter(self, lease, on_commit, part_bytes=self._part_bytes)
        self._writers[name] = writer
        task = asyncio.get_running_loop().create_task(
            self._put_until_closed(name, writer), name=f"part {name}"
        )
        self._tasks.add(task)
        return writer

    @property
    def is_full(self) -> bool:
        """Whether `room` would wait."""
        return self.queued_bytes > self._buffer_bytes or self.stalled is not None

    async def room(self) -> None:
        while self.is_full:
            for writer in self._writers.values():
                writer.hurry()
            await self.next_turn()

    async def find(self, lease: Lease) -> Sequence[PinnedPart]:
        known = {part.key: part for part in lease.pinned}
        found: list[PinnedPart] = []
        for token in range(1, lease.token):
            for copy in count():
                key = part_key(lease, token, copy)
                part = known.pop(key, None) or PinnedPart(key, await self._whole_length(key))
                if not part.length_bytes:
                    break
                found.append(part)
        return [*known.values(), *found]

    async def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[PartRecord]:
        """Raises DamageError, naming the part, where a pinned length holds anything but whole records."""
        for part in parts:
            end = 0
            async with aclosing(self._objects(part.key, part.length_bytes)) as contents:
                async for content in contents:
                    length_bytes = min(len(content), part.length_bytes - end)
                    read_bytes = 0
                    for record_end, record in read_records(BytesIO(content), length_bytes):
                        yield record
                        read_bytes = record_end
                    end += read_bytes
                    if read_bytes != length_bytes:
                        break
            if end != part.length_bytes:
                raise _damage(part, end)

    async def batches(self) -> Sequence[BatchId]:
        return [BatchId(name) for name in await self._bucket.folders_under(_PREFIX)]

    async def delete(self, batch_id: BatchId) -> None:
        """What a lagging listing hides is still there for the next call: `batches` names the batch again."""
        keys = [key async for key in self._bucket.keys_under(f"{_PREFIX}/{batch_id}")]
        failpoint("blob.before_delete")
        await self._bucket.delete(keys)
        failpoint("blob.deleted")

    async def close(self) -> None:
        """Makes a last try at what is queued. Raises UnavailableError when the store does not take it."""
        self._closing.set()
        writers = list(self._writers.values())
        for writer in writers:
            writer.refuse(ValueError(f"part {writer.key} is closed"))
            writer.end()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            self._wake()
        lost = sum(writer.pending_count for writer in writers)
        if lost:
            raise UnavailableError(
                f"{lost} answers could not be written ({self._reason}); their lines are sent again"
            )

    async def next_turn(self) -> None:
        """Until something became durable, failed or was closed."""
        if not self._tasks:
            raise UnavailableError("answers are no longer written; the lines without one are sent again")
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turn)

    def _wake(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.set_result(None)

    # --- writing ---------------------------------------------------------------------------------

    async def _put_until_closed(self, name: str, writer: ObjectPartWriter) -> None:
        try:
            while await writer.due(self._interval_s):
                piece = writer.take()
                if not await self._put_until_taken(writer, piece):
                    return
                self.queued_bytes -= writer.settle()
                self._wake()
        finally:
            writer.fail(UnavailableError(f"part {writer.key} is no longer written"))
            self._failing.pop(writer, None)
            del self._writers[name]
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)
            self._wake()

    async def _put_until_taken(self, writer: ObjectPartWriter, piece: bytes) -> bool:
        """False when it was given up: at the end of all, or because the part is not ours."""
        while True:
            is_last_try = self._closing.is_set()
            try:
                async with self._slots:
                    await self._put(writer, piece)
            except LeaseLost as lost:
                writer.fail(lost)
                self.queued_bytes -= writer.drop()
                return False
            except UnavailableError as error:
                self._failing[writer] = self._reason = error.message
                self._wake()
                if is_last_try:
                    return False
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._retry_s):
                        await self._closing.wait()
            else:
                self._failing.pop(writer, None)
                return True

    async def _put(self, writer: ObjectPartWriter, piece: bytes) -> None:
        failpoint("part.before_write")
        while True:
            key = _object_key(writer.key, writer.number)
            try:
                await self._bucket.put_new(key, piece)
            except FileExistsError:
                if await self._get(key) == piece:
                    break  # put before; its answer was lost
                if writer.number:
                    raise LeaseLost(f"somebody else writes part {writer.key}") from None
                # A store brought back from a copy gives out the same tokens again.
                writer.take_next_copy()
            else:
                break
        failpoint("part.synced")

    # --- reading ---------------------------------------------------------------------------------

    async def _whole_length(self, key: str) -> int:
        """The length of the part's objects, up to one that is missing or not made of whole records."""
        length_bytes = 0
        async with aclosing(self._objects(key, None)) as contents:
            async for content in contents:
                end = 0
                for end, _ in read_records(BytesIO(content), len(content)):  # noqa: B007 - the last is wanted
                    pass
                length_bytes += end
                if end != len(content):
                    break
        return length_bytes

    async def _objects(self, key: str, length_bytes: int | None) -> AsyncGenerator[bytes]:
        """The part's objects in order, several fetched at once, up to a pinned length or a missing one."""
        number, end, largest, at_once = 0, 0, 1, 1
        while length_bytes is None or end < length_bytes:
            if length_bytes is not None:
                at_once = -(-(length_bytes - end) // largest) if number else 1
            at_once = max(1, min(at_once, _READ_AT_ONCE, _READ_BYTES // largest))
            contents = await self._fetched(key, number, at_once, is_pinned=length_bytes is not None)
            for place, content in enumerate(contents):
                if content is None:
                    if length_bytes is None or place == 0:
                        return
                    break  # it is looked for more patiently once it is the next
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
                        self._found(_object_key(key, number + place), is_pinned=is_pinned and place == 0)
                    )
                    for place in range(at_once)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in fetching]

    async def _found(self, key: str, *, is_pinned: bool) -> bytes | None:
        """What is pinned is there; a store that has just failed over may need a moment to know it again."""
        for look in range(_LOOKS if is_pinned else 1):
            if look:
                await asyncio.sleep(_LOOK_AGAIN_S)
            content = await self._get(key)
            if content is not None:
                return content
        return None

    async def _get(self, key: str) -> bytes | None:
        try:
            return await self._bucket.get(key)
        except FileNotFoundError:
            return None


def _object_key(key: str, number: int) -> str:
    return f"{_PREFIX}/{key}/{number}"


def _damage(part: PinnedPart, end: int) -> DamageError:
    return DamageError(
        f"part {part.key} is damaged behind byte {end} of {part.length_bytes} that were in the object store;"
        " bring its objects back from a copy, or cancel the batch"
    )
