"""Parts as files in a folder, with one group commit for all of a worker's open parts."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

from nightmill.blobs import delete_folder, make_folders, reported, sync_folder
from nightmill.core.segment import Lease, PinnedPart
from nightmill.errors import DamageError, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId
from nightmill.parts.protocol import PartRecord
from nightmill.parts.record import read_records
from nightmill.parts.writer import FolderPartWriter, part_key

_READ_BYTES = 1 << 20


class FolderParts:
    """Parts as files: `root/<batch id>/<segment>.<token>.part`, each written by one writer only.

    One commit loop serves all open writers: after the first queued record it gathers for
    `commit_interval_s`, then a thread writes each file once and syncs it; only then do its records count.
    While a write fails (no room, read-only, I/O error) nothing is lost and nothing counts: the records wait,
    `stalled` says why, `room` blocks, and the write is tried again every `retry_s`.

    Args:
        root: made when it is missing.
        watermark_bytes: while less room than this is left, `room` blocks; what was answered is still written.
    """

    def __init__(
        self,
        root: Path,
        *,
        commit_interval_s: float,
        buffer_bytes: int,
        watermark_bytes: int = 0,
        retry_s: float = 1.0,
    ) -> None:
        self._root = root.absolute()
        self._commit_interval_s = commit_interval_s
        self._buffer_bytes = buffer_bytes
        self._watermark_bytes = watermark_bytes
        self._retry_s = retry_s
        self.queued_bytes = 0
        self._stalled: str | None = None
        self._dirty: list[FolderPartWriter] = []
        self._writers: dict[str, FolderPartWriter] = {}
        self._named_folders: set[Path] = set()
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = asyncio.Event()
        self._turn: asyncio.Future[None] | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parts")
        make_folders(self._root)

    @property
    def reads_at_once(self) -> int:
        return 1  # a disk answers at once, and more threads only get in each other's way

    @property
    def stalled(self) -> str | None:
        """Why answers can't be made durable right now, or None when all is well."""
        return self._stalled

    def open(self, lease: Lease, on_commit: Callable[[int], None] | None = None) -> FolderPartWriter:
        """Raises ValueError while another writer is open under the same token."""
        if self._closing.is_set():
            raise ValueError("the parts are closed")
        key = part_key(lease, lease.token, 0)
        if key in self._writers:
            raise ValueError(f"part {key} is already open")
        if self._loop_task is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.create_future()
            self._loop_task = loop.create_task(self._commit_until_closed(), name="parts commit loop")
        writer = FolderPartWriter(self, self._root, lease, on_commit)
        self._writers[key] = writer
        return writer

    @property
    def is_full(self) -> bool:
        """Whether `room` would wait."""
        return self.queued_bytes > self._buffer_bytes or self._stalled is not None

    async def room(self) -> None:
        while self.is_full:
            self._hurry.set()
            await self._next_turn()

    async def find(self, lease: Lease) -> Sequence[PinnedPart]:
        with reported(f"{lease.segment.batch_id}'s parts"):
            return await asyncio.to_thread(self._find, lease)

    async def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[PartRecord]:
        """Raises DamageError, naming the part, where a pinned length holds anything but whole records."""
        for part in parts:
            end = 0
            with reported(f"part {part.key}"):
                try:
                    file = await asyncio.to_thread((self._root / part.key).open, "rb", _READ_BYTES)
                except FileNotFoundError:
                    raise _damage(part, 0) from None
                # A buffered file locks: closing it waits for a read that a cancelled task left behind.
                with file:
                    records = read_records(file, part.length_bytes)
                    while end < part.length_bytes and (batch := await asyncio.to_thread(_some, records)):
                        for _, record in batch:
                            yield record
                        end = batch[-1][0]
            if end != part.length_bytes:
                raise _damage(part, end)

    async def batches(self) -> Sequence[BatchId]:
        with reported("the folder of parts"):
            names = await asyncio.to_thread(os.listdir, self._root)
        return [BatchId(name) for name in names]

    async def delete(self, batch_id: BatchId) -> None:
        folder = self._root / batch_id
        await asyncio.to_thread(delete_folder, folder)
        self._named_folders.discard(folder)

    async def close(self) -> None:
        """Makes a last try at what is queued. Raises UnavailableError when the disk does not take it."""
        self._closing.set()
        self._work.set()
        self._hurry.set()
        try:
            if self._loop_task is not None:
                await self._loop_task
        finally:
            # The one thread lets go of the files after whatever it is still writing.
            writers, self._writers = list(self._writers.values()), {}
            for writer in writers:
                writer.refuse(ValueError(f"part {writer.key} is closed"))
                self._disk.submit(writer.let_go)
            self._disk.shutdown(wait=False)
        lost = sum(writer.pending_count for writer in writers)
        if lost:
            raise UnavailableError(
                f"{lost} answers could not be written ({self._stalled}); their lines are sent again"
            )

    def queued(self, writer: FolderPartWriter) -> None:
        """A clean writer has its first record queued."""
        self._dirty.append(writer)
        self._work.set()

    def forget(self, writer: FolderPartWriter) -> None:
        """A closed writer has nothing queued any more."""
        self._writers = {key: other for key, other in self._writers.items() if other is not writer}
        writer.let_go()

    async def committed(self) -> None:
        """The end of the next commit, which does not wait for the rest of its interval."""
        self._hurry.set()
        await self._next_turn()

    async def _next_turn(self) -> None:
        if self._turn is None or (self._loop_task is not None and self._loop_task.done()):
            raise UnavailableError("answers are no longer written; the lines without one are sent again")
        await asyncio.shield(self._turn)

    async def _commit_until_closed(self) -> None:
        try:
            while True:
                await self._gather()
                failed = await self._commit()
                if self._closing.is_set() and (failed or not self._dirty):
                    return
                if self._stalled is not None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._retry_s):
                            await self._closing.wait()
        finally:
            for writer in self._writers.values():
                writer.refuse(UnavailableError(f"part {writer.key} is no longer written"))
            self._wake_waiters()

    async def _gather(self) -> None:
        if self._stalled is not None:
            return
        await self._work.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._commit_interval_s):
                await self._hurry.wait()

    async def _commit(self) -> bool:
        """Says whether any file could not be written; its records stay queued."""
        self._work.clear()
        self._hurry.clear()
        writers, self._dirty = self._dirty, []
        pieces = [writer.take() for writer in writers]
        loop = asyncio.get_running_loop()
        shortage, failures = await loop.run_in_executor(self._disk, self._write_out, writers, pieces)
        reason = None
        for writer, failure in zip(writers, failures, strict=True):
            if failure is None:
                self.queued_bytes -= writer.settle()
            else:
                reason = f"part {writer.key} can't be written: {failure.strerror}"
            if writer.pending_count:
                self.queued(writer)
            elif writer.is_closing:
                self.forget(writer)
        self._stalled = reason or shortage
        self._wake_waiters()
        return reason is not None

    def _wake_waiters(self) -> None:
        if self._turn is not None:
            self._turn.set_result(None)
            self._turn = asyncio.get_running_loop().create_future()

    def _write_out(
        self, writers: Sequence[FolderPartWriter], pieces: Sequence[Sequence[bytes]]
    ) -> tuple[str | None, list[OSError | None]]:
        failures: list[OSError | None] = []
        for writer, piece in zip(writers, pieces, strict=True):
            try:
                writer.write_out(b"".join(piece))
                failures.append(None)
            except OSError as error:
                failures.append(error)
        for folder in {writer.folder for writer in writers if not writer.is_named}:
            try:
                self._name_files(folder)
            except OSError as error:
                for place, writer in enumerate(writers):
                    if writer.folder == folder and not writer.is_named:
                        failures[place] = failures[place] or error
            else:
                for writer in writers:
                    writer.is_named |= writer.folder == folder and writer.has_file
        return self._shortage(), failures

    def _name_files(self, folder: Path) -> None:
        """A new file counts only once its name, and its folder's name, survive a power cut too."""
        sync_folder(folder)
        if folder not in self._named_folders:
            sync_folder(self._root)
            self._named_folders.add(folder)
        failpoint("part.named")

    def _shortage(self) -> str | None:
        if self._watermark_bytes <= 0:
            return None
        try:
            room = os.statvfs(self._root)
        except OSError as error:
            return f"the disk can't be asked for its room: {error.strerror}"
        free_bytes = room.f_bavail * room.f_frsize
        if free_bytes >= self._watermark_bytes:
            return None
        return f"the disk has {free_bytes >> 20} MiB left, {self._watermark_bytes >> 20} MiB are kept free"

    def _find(self, lease: Lease) -> Sequence[PinnedPart]:
        known = {part.key: part for part in lease.pinned}
        found: list[PinnedPart] = []
        for token in range(lease.token):
            for copy in count():
                key = part_key(lease, token, copy)
                part = known.pop(key, None)
                if part is None and (length_bytes := _durable_length(self._root / key)) is not None:
                    part = PinnedPart(key, length_bytes)
                if part is None:
                    break
                if part.length_bytes:
                    found.append(part)
        return [*known.values(), *found]


def _some(records: Generator[tuple[int, PartRecord]]) -> list[tuple[int, PartRecord]]:
    """The next MiB of records or so: one trip to a thread for many of them."""
    batch: list[tuple[int, PartRecord]] = []
    size_bytes = 0
    for end, record in records:
        batch.append((end, record))
        size_bytes += len(record.output.text)
        if size_bytes >= _READ_BYTES:
            break
    return batch


def _durable_length(path: Path) -> int | None:
    """The length of the file's whole records, once they are surely on stable storage; None without a file.

    Its writer may have died, or be about to, between write and sync. A pin must outlive a power cut.
    """
    try:
        file = path.open("rb", _READ_BYTES)
    except FileNotFoundError:
        return None
    end = 0
    with file:
        for end, _ in read_records(file, os.fstat(file.fileno()).st_size):  # noqa: B007 - the last is wanted
            pass
        os.fdatasync(file.fileno())
    sync_folder(path.parent)
    sync_folder(path.parent.parent)
    return end


def _damage(part: PinnedPart, end: int) -> DamageError:
    return DamageError(
        f"part {part.key} is damaged behind byte {end} of {part.length_bytes} that were on disk;"
        " stop the server and run 'nightmill check --repair', which sends the lines without an answer again"
    )
