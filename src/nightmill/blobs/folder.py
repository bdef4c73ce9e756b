"""Blobs as files in a folder of one file system, as the protocol describes."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from nightmill.blobs.protocol import UNFINISHED, check_key, has_been_cancelled_until, random_name
from nightmill.errors import StorageFullError, UnavailableError
from nightmill.failpoints import failpoint

_CHUNK_BYTES = 1 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_AWAY = frozenset(
    {
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.EIO,
        errno.EACCES,
        errno.EPERM,
        errno.ENOMEM,
        errno.ESTALE,
    }
)


class FolderBlobs:
    """Blobs as files under `root`, named by their keys; unfinished blobs are in `root/tmp`.

    Args:
        root: created when missing. One file system, so that a rename moves a finished blob into place.
        watermark_bytes: nothing is written while the disk has less free space.
        new_name: unique names for unfinished blobs.
    """

    def __init__(
        self, root: Path, *, watermark_bytes: int, new_name: Callable[[], str] = random_name
    ) -> None:
        self._root = root.absolute()
        self._watermark_bytes = watermark_bytes
        self._new_name = new_name
        with reported("the blob folder"):
            make_folders(self._root / UNFINISHED)

    def path(self, key: str) -> Path:
        """The path of the blob, whether or not it exists. Raises ValueError for a text that is not a key."""
        return self._root / check_key(key)

    async def open_writer(self, key: str) -> "FolderBlobWriter":
        target = self.path(key)
        unfinished = self._root / UNFINISHED / self._new_name()
        with reported(f"blob {key}"):
            opening = asyncio.get_running_loop().run_in_executor(None, self._open, unfinished)
            try:
                descriptor = await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The thread can't be stopped, and the file it opens would stay until the next start.
                await has_been_cancelled_until(opening)
                if opening.exception() is None:
                    os.close(opening.result())
                    unfinished.unlink()
                raise
        return FolderBlobWriter(key, target, unfinished, descriptor, self._check_room)

    async def size_bytes(self, key: str) -> int | None:
        path = self.path(key)
        with reported(f"blob {key}"):
            try:
                return (await asyncio.to_thread(path.stat)).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:
        path = self.path(key)
        with reported(f"blob {key}"):
            return await asyncio.to_thread(_read, path, start, length_bytes)

    async def stream(self, key: str, *, chunk_bytes: int = _CHUNK_BYTES) -> AsyncIterator[bytes]:
        path = self.path(key)
        with reported(f"blob {key}"):
            file = await asyncio.to_thread(path.open, "rb")
            # A buffered file has a lock: close() waits for a read that a cancelled task left running.
            with file:
                while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                    yield chunk

    async def delete(self, key: str) -> None:
        path = self.path(key)
        with reported(f"blob {key}"):
            await asyncio.to_thread(_delete, path, self._root)

    async def delete_under(self, prefix: str) -> None:
        folder = self.path(prefix)
        with reported(f"blobs under {prefix}"):
            await asyncio.to_thread(delete_folder, folder)

    async def keys_under(self, prefix: str) -> AsyncIterator[str]:
        folder = self.path(prefix)
        with reported(f"blobs under {prefix}"):
            keys = await asyncio.to_thread(self._keys, folder)
        for key in keys:
            yield key

    async def free_bytes(self) -> int:
        with reported("the blob folder"):
            return await asyncio.to_thread(_free_bytes, self._root)

    async def sweep_unfinished(self) -> int:
        with reported("the blob folder"):
            return await asyncio.to_thread(self._sweep)

    async def close(self) -> None:
        return

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:  # noqa: ARG002 - part of the protocol
        self.path(key)
        return None

    def _open(self, unfinished: Path) -> int:
        self._check_room()
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        failpoint("blob.opened")
        return descriptor

    def _check_room(self) -> None:
        free_bytes = _free_bytes(self._root)
        if free_bytes < self._watermark_bytes:
            raise StorageFullError(
                f"the data folder's disk has {free_bytes >> 20} MiB left and"
                f" {self._watermark_bytes >> 20} MiB are kept free; delete files or make room, then try again"
            )

    def _keys(self, folder: Path) -> list[str]:
        # A folder that another task deletes during the listing counts as empty.
        return sorted(
            str((Path(parent) / name).relative_to(self._root))
            for parent, _, names in os.walk(folder)
            for name in names
        )

    def _sweep(self) -> int:
        left = list((self._root / UNFINISHED).iterdir())
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


class FolderBlobWriter:
    """Writes a full buffer to the disk while the caller fills the next buffer.

    A failure of the disk is therefore raised by a later `write` or by `commit`. After a failed or successful
    `commit`, `abort` does nothing, so that `abort` can be called in a `finally`.
    """

    def __init__(
        self, key: str, target: Path, unfinished: Path, descriptor: int, check_room: Callable[[], None]
    ) -> None:
        self.size_bytes = 0
        self._key = key
        self._target = target
        self._unfinished = unfinished
        self._descriptor = descriptor
        self._check_room = check_room
        # Two buffers are used in turn: allocating a new one each time costs more than the copy.
        self._buffer, self._other_buffer = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
        self._filled_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._is_open = True

    async def write(self, chunk: bytes | memoryview) -> None:
        if not self._is_open:
            raise ValueError(f"blob {self._key} was already committed or aborted")
        self.size_bytes += len(chunk)
        rest = memoryview(chunk)
        while len(rest) > (room_bytes := _CHUNK_BYTES - self._filled_bytes):
            self._fill(rest[:room_bytes])
            await self._hand_over()
            rest = rest[room_bytes:]
        self._fill(rest)

    async def commit(self) -> None:
        try:
            await self._hand_over()
            await self._written()
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._publish)
            await self._written()
        except BaseException:
            await self.abort()
            raise
        self._is_open = False
        os.close(self._descriptor)

    async def abort(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        was_cancelled = self._writing is not None and await has_been_cancelled_until(self._writing)
        # These calls are fast; in a thread, a second cancellation could skip them.
        os.close(self._descriptor)
        self._unfinished.unlink(missing_ok=True)
        if was_cancelled:
            raise asyncio.CancelledError

    def _fill(self, chunk: memoryview) -> None:
        end = self._filled_bytes + len(chunk)
        self._buffer[self._filled_bytes : end] = chunk
        self._filled_bytes = end

    async def _hand_over(self) -> None:
        await self._written()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._write_out, self._buffer, self._filled_bytes)
        self._buffer, self._other_buffer, self._filled_bytes = self._other_buffer, self._buffer, 0

    async def _written(self) -> None:
        if self._writing is None:
            return
        with reported(f"blob {self._key}"):
            await asyncio.shield(self._writing)
        self._writing = None

    def _write_out(self, buffer: bytearray, length_bytes: int) -> None:
        self._check_room()
        with memoryview(buffer) as view:
            written = 0
            while written < length_bytes:
                written += os.write(self._descriptor, view[written:length_bytes])

    def _publish(self) -> None:
        failpoint("blob.written")
        os.fsync(self._descriptor)
        failpoint("blob.synced")
        while True:
            make_folders(self._target.parent)
            try:
                self._unfinished.rename(self._target)
            except FileNotFoundError:
                if not self._unfinished.exists():
                    raise
                continue  # the folder was deleted between the two calls
            break
        failpoint("blob.renamed")
        # Without a folder the blob was deleted too, and there is no name to make durable.
        with suppress(FileNotFoundError):
            sync_folder(self._target.parent)
        failpoint("blob.named")


@contextmanager
def reported(what: str) -> Generator[None]:
    """Raises StorageFullError or UnavailableError in place of an OSError about missing room or access."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "unknown"
        if error.errno in _NO_ROOM:
            raise StorageFullError(
                f"there is no room for {what} ({reason}); delete files or make room, then try again"
            ) from error
        if error.errno in _AWAY:
            raise UnavailableError(
                f"{what} can't be reached ({reason}); see the data folder's disk and limits"
            ) from error
        raise


def make_folders(folder: Path) -> None:
    """Like `mkdir -p`, and syncs each new name to stable storage."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, start: int, length_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        pieces: list[bytes] = []
        while length_bytes > 0 and (piece := os.pread(file.fileno(), length_bytes, start)):
            pieces.append(piece)
            start += len(piece)
            length_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _delete(path: Path, root: Path) -> None:
    failpoint("blob.before_delete")
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    failpoint("blob.deleted")
    with suppress(FileNotFoundError):  # another task removed the empty folder
        # The caller forgets the key next; without a sync a power cut could bring back an orphaned blob.
        sync_folder(path.parent)
    if path.parent.parent != root:
        # Each upload and each batch has a folder of its own; empty folders would accumulate.
        with suppress(OSError):
            path.parent.rmdir()


def delete_folder(folder: Path) -> None:
    if not folder.is_dir():
        return
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # another task deletes here too
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # a blob was committed meanwhile
                raise
    sync_folder(folder.parent)


def _free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
