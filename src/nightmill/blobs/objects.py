"""Blobs as objects of a bucket, as the protocol describes: an object becomes visible only when complete.

A blob that fits in one upload part is stored by one put. A larger blob is stored by a multipart upload while
it is written: memory holds one part that is being filled, one that waits and `_PARTS_AT_ONCE` in transfer,
whatever the size of the blob. The requests themselves are made by `bucket`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from nightmill.blobs.bucket import Bucket, PastTheEndError
from nightmill.blobs.protocol import check_key, has_been_cancelled_until, random_name
from nightmill.errors import NightmillError, UnavailableError
from nightmill.failpoints import failpoint

_PARTS_AT_ONCE = 2
_CHUNK_BYTES = 1 << 20
_RESUMPTIONS = 3
_WRITER = "writer"


class ObjectBlobs:
    """Blobs as objects, named by their keys.

    Args:
        part_bytes: size of the parts of a multipart upload; S3 requires at least 5 MiB.
        new_name: unique names that mark an object as written by one writer.
    """

    def __init__(self, bucket: Bucket, *, part_bytes: int, new_name: Callable[[], str] = random_name) -> None:
        self.bucket = bucket
        self._part_bytes = part_bytes
        self._new_name = new_name

    async def open_writer(self, key: str) -> "ObjectBlobWriter":
        check_key(key)
        failpoint("blob.opened")
        return ObjectBlobWriter(self.bucket, key, part_bytes=self._part_bytes, name=self._new_name())

    async def size_bytes(self, key: str) -> int | None:
        # The response to HEAD does not distinguish a missing object from a missing bucket.
        try:
            _, size_bytes = await self.bucket.get_range(check_key(key), 0, 1)
        except PastTheEndError:
            return 0
        except FileNotFoundError:
            return None
        return size_bytes

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:
        try:
            content, _ = await self.bucket.get_range(check_key(key), start, max(length_bytes, 1))
        except PastTheEndError:
            return b""
        return content[:length_bytes]

    async def stream(self, key: str, *, chunk_bytes: int = _CHUNK_BYTES) -> AsyncIterator[bytes]:
        """Resumes after a broken connection, as long as the blob exists."""
        check_key(key)
        offset, tries_left = 0, _RESUMPTIONS
        while True:
            try:
                async for chunk in self.bucket.stream_from(key, offset, chunk_bytes=chunk_bytes):
                    offset, tries_left = offset + len(chunk), _RESUMPTIONS
                    yield chunk
            except PastTheEndError:
                return
            except FileNotFoundError:
                if offset == 0:
                    raise
                raise UnavailableError(f"blob {key} was deleted while it was read") from None
            except UnavailableError:
                if offset == 0 or tries_left == 0:
                    raise
                tries_left -= 1
            else:
                return

    async def delete(self, key: str) -> None:
        check_key(key)
        failpoint("blob.before_delete")
        await self.bucket.delete([key])
        failpoint("blob.deleted")

    async def delete_under(self, prefix: str) -> None:
        check_key(prefix)
        await self.bucket.delete([key async for key in self.bucket.keys_under(prefix)])

    async def keys_under(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.bucket.keys_under(check_key(prefix)):
            yield key

    async def free_bytes(self) -> None:
        return None

    async def sweep_unfinished(self) -> int:
        """Deletes nothing: an unfinished multipart upload may belong to another server, and the bucket's
        lifecycle rule ends it."""
        return 0

    async def close(self) -> None:
        await self.bucket.close()

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:
        return await self.bucket.signed_url(check_key(key), ttl_s=ttl_s)


class _AbortedError(Exception):
    """Raised into the store's upload, which then aborts it."""


class _Pieces:
    """One waiting piece between the writer and the store's upload."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytearray | None] = asyncio.Queue(maxsize=1)
        self._is_aborted = False

    async def put(self, piece: bytearray | None) -> None:
        await self._queue.put(piece)

    def drain(self) -> None:
        """Empties the queue, so that a waiting `put` returns."""
        with suppress(asyncio.QueueEmpty):
            while True:
                self._queue.get_nowait()

    def abort(self) -> None:
        self._is_aborted = True
        self.drain()
        self._queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[bytearray]:
        return self

    async def __anext__(self) -> bytearray:
        piece = await self._queue.get()
        if self._is_aborted:
            raise _AbortedError
        if piece is None:
            raise StopAsyncIteration
        return piece


class ObjectBlobWriter:
    """Uploads a blob. A failure of the store is raised by a later `write` or by `commit`. After a `commit`,
    failed or not, `abort` does nothing, so that `abort` can be called in a `finally`.

    Args:
        name: stored with the object. It distinguishes a commit whose response was lost from a failed commit.
    """

    def __init__(self, bucket: Bucket, key: str, *, part_bytes: int, name: str) -> None:
        self.size_bytes = 0
        self._bucket = bucket
        self._key = key
        self._part_bytes = part_bytes
        self._attributes = {_WRITER: name}
        self._buffer = bytearray()
        self._pieces = _Pieces()
        self._upload: asyncio.Task[None] | None = None
        self._is_open = True

    async def write(self, chunk: bytes | memoryview) -> None:
        if not self._is_open:
            raise ValueError(f"blob {self._key} was already committed or aborted")
        self.size_bytes += len(chunk)
        rest = memoryview(chunk)
        while len(rest) > (room_bytes := self._part_bytes - len(self._buffer)):
            self._buffer += rest[:room_bytes]
            await self._hand_over()
            rest = rest[room_bytes:]
        self._buffer += rest

    async def commit(self) -> None:
        failpoint("blob.written")
        try:
            if self._upload is None:
                put = self._bucket.put(self._key, self._buffer, attributes=self._attributes)
                self._upload = asyncio.get_running_loop().create_task(put)
            else:
                await self._hand_over()
                await self._pieces.put(None)
            await asyncio.shield(self._upload)
        except UnavailableError:
            if not await self._is_there():
                await self.abort()
                raise
        except BaseException:
            await self.abort()
            raise
        self._is_open = False
        self._buffer = bytearray()
        failpoint("blob.named")

    async def abort(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._buffer = bytearray()
        if self._upload is None:
            return
        self._pieces.abort()
        was_cancelled = await has_been_cancelled_until(self._upload)
        if self._upload.exception() is None:
            # The upload completed before the abort. No row will reference the object.
            with suppress(NightmillError):
                await self._bucket.delete([self._key])
        if was_cancelled:
            raise asyncio.CancelledError

    async def _hand_over(self) -> None:
        if self._upload is None:
            upload = self._bucket.put_pieces(
                self._key,
                self._pieces,
                part_bytes=self._part_bytes,
                at_once=_PARTS_AT_ONCE,
                attributes=self._attributes,
            )
            self._upload = asyncio.get_running_loop().create_task(upload)
            self._upload.add_done_callback(lambda _: self._pieces.drain())
        piece, self._buffer = self._buffer, bytearray()
        if not self._upload.done():
            await self._pieces.put(piece)
        if self._upload.done():
            self._upload.result()

    async def _is_there(self) -> bool:
        """Whether the store has this writer's object although the commit failed: the response may be lost."""
        try:
            attributes = await self._bucket.attributes(self._key)
        except (NightmillError, FileNotFoundError):
            return False
        return attributes.get(_WRITER) == self._attributes[_WRITER]
