"""Blobs as files in a folder.

Duty: `FolderBlobs` keeps the promise of the protocol on one file system. Not its duty: what the bytes mean.
"""

import asyncio
import errno
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nightmill.blobs.protocol import UNFINISHED, check_key
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


def _random_name() -> str:
    return secrets.token_hex(16)


class FolderBlobs:
    """Blobs as files under `root`, named by their keys; unfinished ones lie in `root/tmp`.

    Args:
        root: made when it is missing. One file system, so that a rename moves a finished blob into place.
        watermark_bytes: nothing new is written while less room than this is left.
        new_name: names of unfinished blobs; never the same twice.
    """

    def __init__(
        self, root: Path, *, watermark_bytes: int, new_name: Callable[[], str] = _random_name
    ) -> None:
        self._root = root.absolute()
        self._watermark_bytes = watermark_bytes
        self._new_name = new_name
        with reported("the blob folder"):
            make_folders(self._root / UNFINISHED)

    def path(self, key: str) -> Path:
        """Where the blob lies, or would. Raises ValueError for what is not a key."""
        return self._root / check_key(key)

    async def open_writer(self, key: str) -> "FolderBlobWriter":
        target = self.path(key)
        unfinished = self._root / UNFINISHED / self._new_name()
        with reported(f"blob {key}"):
            opening = asyncio.get_running_loop().run_in_executor(None, self._open, unfinished)
            try:
                descriptor = await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The thread can't be stopped; what it opens would lie there until the next start.
                await _finished(opening)
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
            # A buffered file locks: closing it waits for a read that a cancelled task left behind.
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
        """Removes what a crash left in `tmp`; says how many. Only at start, while nobody writes."""
        with reported("the blob folder"):
            return await asyncio.to_thread(self._sweep)

    async def close(self) -> None:
        return

    async def signed_url(self, key: str, *, ttl_s: float) -> str | None:  # noqa: ARG002 - the protocol asks for it
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
        # A vanished folder is an empty one: whoever lists may race with whoever deletes.
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
    """Writes behind: a full buffer goes to the disk while the caller fills the next one.

    A failure of the disk therefore surfaces in a later `write` or in `commit`. After a failed or successful
    `commit`, `abort` does nothing, so that it may stand in a `finally`.
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
        # Two buffers that change places: fresh memory for each would cost more than the copy into it.
        self._buffer, self._spare = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
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
        was_cancelled = self._writing is not None and await _finished(self._writing)
        # Quick, and in a thread a second cancellation could cut them off.
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
        self._buffer, self._spare, self._filled_bytes = self._spare, self._buffer, 0

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
                continue  # a delete took the folder away between the two calls
            break
        failpoint("blob.renamed")
        # No folder means that a delete took it, and with it the blob: no name is left to keep.
        with suppress(FileNotFoundError):
            sync_folder(self._target.parent)
        failpoint("blob.named")


@contextmanager
def reported(what: str) -> Generator[None]:
    """Turns what the operating system says about a lack of room or access into our errors."""
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


async def _finished(work: "asyncio.Future[Any]") -> bool:
    """Waits for a thread that can't be stopped and takes note of its failure; says if we were cancelled."""
    was_cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            was_cancelled = True
    if not work.cancelled():
        work.exception()
    return was_cancelled


def make_folders(folder: Path) -> None:
    """Like `mkdir -p`, with each new name on stable storage."""
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
    with suppress(FileNotFoundError):  # somebody else took the emptied folder away
        # Whoever asked forgets the key next; without this a power cut could bring back bytes nobody knows of.
        sync_folder(path.parent)
    if path.parent.parent != root:
        # Each upload and each batch has a folder of its own; left empty, they would add up for ever.
        with suppress(OSError):
            path.parent.rmdir()


def delete_folder(folder: Path) -> None:
    if not folder.is_dir():
        return
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # somebody else deletes here too
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # a blob was committed meanwhile
                raise
    sync_folder(folder.parent)


def _free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
