"""Parts as files in a folder, with one group commit for all open writers of a process."""

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

from nightmill.blobs import delete_folder, make_folders, reported, sync_folder
from nightmill.core.segment import PinnedPart, Segment
from nightmill.errors import DamageError, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId
from nightmill.parts.record import PartRecord, PartTail, TextPlace, part_key, read_records, whole_bytes
from nightmill.parts.writer import PartWriter

_READ_BYTES = 1 << 20


class FolderParts:
    """Parts as files: `root/<batch id>/<segment>.<token>.part`, each written by one writer only.

    One commit loop serves all open writers. After the first queued record the loop collects records for
    `commit_interval_s`; then a thread writes each file once and syncs the file, and only then the records
    count. While a write fails (no room, read-only, I/O error) no record is lost and none counts: the records
    wait, `stalled` gives the reason, `room` blocks, and the write is tried again every `retry_s`.

    Args:
        root: created when missing.
        watermark_bytes: while the disk has less free space, `room` blocks; queued answers are still written.
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
        self._files: dict[PartWriter, _PartFile] = {}
        self._dirty: dict[PartWriter, _PartFile] = {}
        self._synced_folders: set[Path] = set()
        self._has_work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = asyncio.Event()
        self._commit_ended = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parts")
        make_folders(self._root)

    @property
    def reads_at_once(self) -> int:
        return 1  # a disk has no latency to hide, and more reading threads slow each other down

    @property
    def stalled(self) -> str | None:
        return self._stalled

    @property
    def is_full(self) -> bool:
        return self.queued_bytes > self._buffer_bytes or self._stalled is not None

    async def room(self) -> None:
        while self.is_full:
            self._hurry.set()
            await self._next_commit()

    def open(self, segment: Segment, token: int) -> PartWriter:
        if self._closing.is_set():
            raise ValueError("the parts are closed")
        writer = PartWriter(self, segment, token)
        if any(other.name == writer.name for other in self._files):
            raise ValueError(f"part {writer.name} is already open")
        if self._loop_task is None:
            loop = asyncio.get_running_loop()
            self._loop_task = loop.create_task(self._commit_until_closed(), name="parts commit loop")
        self._files[writer] = _PartFile(self._root, writer)
        return writer

    async def find(
        self, segment: Segment, *, below: int, pinned: Sequence[PinnedPart] = ()
    ) -> Sequence[PinnedPart]:
        with reported(f"{segment.batch_id}'s parts"):
            return await asyncio.to_thread(self._find, segment, below, pinned)

    async def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[Sequence[PartRecord]]:
        for part in parts:
            end = 0
            with reported(f"part {part.key}"):
                try:
                    file = await asyncio.to_thread((self._root / part.key).open, "rb", _READ_BYTES)
                except FileNotFoundError:
                    raise _damage(part, 0) from None
                # A buffered file has a lock: close() waits for a read that a cancelled task left running.
                with file:
                    rows = read_records(file, part.length_bytes, key=part.key)
                    while end < part.length_bytes:
                        records, end = await asyncio.to_thread(_next_records, rows, end)
                        if not records:
                            break
                        yield records
            if end != part.length_bytes:
                raise _damage(part, end)

    async def tail(self, tail: PartTail) -> tuple[Sequence[PartRecord], PartTail]:
        with reported(f"part {tail.key}"):
            return await asyncio.to_thread(_read_tail, self._root, tail)

    async def text(self, place: TextPlace) -> bytes:
        def read() -> bytes:
            with (self._root / place.key).open("rb") as file:
                file.seek(place.offset)
                return file.read(place.length_bytes)

        with reported(f"part {place.key}"):
            try:
                text = await asyncio.to_thread(read)
            except FileNotFoundError:
                text = b""
        if len(text) != place.length_bytes:
            end = place.offset + place.length_bytes
            raise _damage(PinnedPart(place.key, end), place.offset)
        return text

    async def batches(self) -> Sequence[BatchId]:
        with reported("the folder of parts"):
            names = await asyncio.to_thread(os.listdir, self._root)
        return [BatchId(name) for name in names]

    async def delete(self, batch_id: BatchId) -> None:
        folder = self._root / batch_id
        await asyncio.to_thread(delete_folder, folder)
        self._synced_folders.discard(folder)

    async def close(self) -> None:
        self._closing.set()
        self._has_work.set()
        self._hurry.set()
        try:
            if self._loop_task is not None:
                await self._loop_task
        finally:
            # The disk thread closes the files after the write that may still run.
            files, self._files = self._files, {}
            for file in files.values():
                self._disk.submit(file.close)
            self._disk.shutdown(wait=False)
        lost = sum(writer.pending_count for writer in files)
        if lost:
            raise UnavailableError(
                f"{lost} answers could not be written ({self._stalled}); their lines are sent again"
            )

    # --- the sink of the writers ---------------------------------------------------------------------

    def queued(self, writer: PartWriter) -> None:
        self._dirty[writer] = self._files[writer]
        self._has_work.set()

    async def commit(self, writer: PartWriter) -> None:  # noqa: ARG002 - one commit serves all writers
        self._hurry.set()
        await self._next_commit()

    async def release(self, writer: PartWriter) -> None:
        file = self._files.pop(writer, None)
        if file is not None:
            file.close()

    # --- the commit loop -----------------------------------------------------------------------------

    async def _next_commit(self) -> None:
        if self._loop_task is None or self._loop_task.done():
            raise UnavailableError("answers are no longer written; the lines without one are sent again")
        await self._commit_ended.wait()

    async def _commit_until_closed(self) -> None:
        try:
            while True:
                await self._collect()
                failed = await self._commit()
                if self._closing.is_set() and (failed or not self._dirty):
                    return
                if self._stalled is not None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._retry_s):
                            await self._closing.wait()
        finally:
            for writer in self._files:
                writer.fail(UnavailableError(f"part {writer.key} is no longer written"))
            self._wake_waiters()

    async def _collect(self) -> None:
        """Waits for a first record, then for the interval."""
        if self._stalled is not None:
            return
        await self._has_work.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._commit_interval_s):
                await self._hurry.wait()

    async def _commit(self) -> bool:
        """Returns whether any file could not be written; the records of such a file stay queued."""
        self._has_work.clear()
        self._hurry.clear()
        dirty, self._dirty = self._dirty, {}
        files = list(dirty.values())
        pieces = [writer.take() for writer in dirty]
        loop = asyncio.get_running_loop()
        shortage, failures = await loop.run_in_executor(self._disk, self._write_out, files, pieces)
        reason = None
        for (writer, file), failure in zip(dirty.items(), failures, strict=True):
            if failure is None:
                writer.settle()
            else:
                reason = f"part {writer.key} can't be written: {failure.strerror}"
            if writer.pending_count:
                self._dirty[writer] = file
                self._has_work.set()
            elif writer.is_ending:
                await self.release(writer)
        self._stalled = reason or shortage
        self._wake_waiters()
        return reason is not None

    def _wake_waiters(self) -> None:
        self._commit_ended.set()
        self._commit_ended.clear()

    # --- in the disk thread --------------------------------------------------------------------------

    def _write_out(
        self, files: Sequence["_PartFile"], pieces: Sequence[Sequence[bytes]]
    ) -> tuple[str | None, list[OSError | None]]:
        failures: list[OSError | None] = []
        for file, records in zip(files, pieces, strict=True):
            try:
                file.write(b"".join(records))
                failures.append(None)
            except OSError as error:
                failures.append(error)
        for folder in {file.folder for file in files if not file.is_name_durable}:
            try:
                self._sync_names(folder)
            except OSError as error:
                for place, file in enumerate(files):
                    if file.folder == folder and not file.is_name_durable:
                        failures[place] = failures[place] or error
            else:
                for file in files:
                    file.is_name_durable |= file.folder == folder and file.exists
        return self._shortage(), failures

    def _sync_names(self, folder: Path) -> None:
        """Syncs the names of new files, and of their folder: a power cut could take those away too."""
        sync_folder(folder)
        if folder not in self._synced_folders:
            sync_folder(self._root)
            self._synced_folders.add(folder)
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

    def _find(self, segment: Segment, below: int, pinned: Sequence[PinnedPart]) -> Sequence[PinnedPart]:
        found = list(pinned)
        pinned_keys = {part.key for part in pinned}
        for token in range(below - 1, 0, -1):
            for copy in count():
                key = part_key(segment, token, copy)
                if key in pinned_keys:
                    continue
                length_bytes = _durable_bytes(self._root / key)
                if length_bytes is None:
                    break
                if length_bytes:
                    found.append(PinnedPart(key, length_bytes))
        return found


class _PartFile:
    """The file of one writer. Between `take` and `settle` only the disk thread uses the file.

    Records are written again, byte for byte at the same offset, until write and sync succeed. So a torn tail
    is overwritten instead of cut off, and a length that another process has pinned meanwhile stays valid.
    """

    __slots__ = ("_descriptor", "_root", "_writer", "folder", "is_name_durable")

    def __init__(self, root: Path, writer: PartWriter) -> None:
        self.folder = (root / writer.key).parent
        self.is_name_durable = False
        self._root = root
        self._writer = writer
        self._descriptor: int | None = None

    @property
    def exists(self) -> bool:
        return self._descriptor is not None

    def write(self, records: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = self._create()
        written = 0
        failpoint("part.before_write")
        with memoryview(records) as view:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], self._writer.durable_bytes + written)
        failpoint("part.written")
        os.fdatasync(self._descriptor)
        failpoint("part.synced")

    def _create(self) -> int:
        """A new file: after a restore of an older database another file may exist under the same token."""
        self.folder.mkdir(exist_ok=True)
        for copy in count():
            self._writer.use_copy(copy)
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                return os.open(self._root / self._writer.key, flags, 0o600)
        raise AssertionError("count() has no end")

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _next_records(rows: Generator[tuple[int, PartRecord]], end: int) -> tuple[list[PartRecord], int]:
    """About 1 MiB of records, and the offset of their end: one thread call for many records."""
    records: list[PartRecord] = []
    size_bytes = 0
    for end, record in rows:  # noqa: B007 - without a record, `end` keeps its value
        records.append(record)
        size_bytes += len(record.output.text)
        if size_bytes >= _READ_BYTES:
            break
    return records, end


def _read_tail(root: Path, tail: PartTail) -> tuple[Sequence[PartRecord], PartTail]:
    try:
        file = (root / tail.key).open("rb", _READ_BYTES)
    except FileNotFoundError:
        return (), tail
    with file:
        left_bytes = os.fstat(file.fileno()).st_size - tail.length_bytes
        file.seek(tail.length_bytes)
        records, end = _next_records(read_records(file, left_bytes), 0)
        if not records:
            return (), tail
        _make_durable(root / tail.key, file.fileno())
    return records, PartTail(tail.key, tail.length_bytes + end)


def _durable_bytes(path: Path) -> int | None:
    """The length of the file's whole records, after a sync; None without a file.

    The file's writer may have died between write and sync, or be about to. A pinned length must survive a
    power cut.
    """
    try:
        file = path.open("rb", _READ_BYTES)
    except FileNotFoundError:
        return None
    with file:
        length_bytes = whole_bytes(file, os.fstat(file.fileno()).st_size)
        _make_durable(path, file.fileno())
    return length_bytes


def _make_durable(path: Path, descriptor: int) -> None:
    os.fdatasync(descriptor)
    sync_folder(path.parent)
    sync_folder(path.parent.parent)


def _damage(part: PinnedPart, end: int) -> DamageError:
    return DamageError(
        f"part {part.key} is damaged behind byte {end} of {part.length_bytes} that were on disk;"
        " stop the server and run 'nightmill check --repair', which sends the lines without an answer again"
    )
