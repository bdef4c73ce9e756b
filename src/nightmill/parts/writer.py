"""One part as a file, written by one writer only."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Protocol

from nightmill.batch import Tally
from nightmill.crash import point
from nightmill.line import OutputLine
from nightmill.parts.record import HEADER_BYTES, pack_records
from nightmill.segment import Lease, PinnedPart


class GroupCommit(Protocol):
    """What a writer asks of those who write for it."""

    queued_bytes: int

    def queued(self, writer: "FolderPartWriter") -> None:
        """A clean writer has its first record queued."""
        ...

    def forget(self, writer: "FolderPartWriter") -> None:
        """A closed writer has nothing queued any more."""
        ...

    async def committed(self) -> None:
        """The end of the next commit, which does not wait for the rest of its interval."""
        ...


class FolderPartWriter:
    """The part of one lease. Between `take` and `settle` the file is the disk thread's, all else the loop's.

    A record is written again, byte for byte at the same place, until its write and sync succeed. So a torn
    tail is overwritten rather than cut off, and a length that somebody pinned meanwhile stays good.
    """

    def __init__(
        self, group: GroupCommit, root: Path, lease: Lease, on_commit: Callable[[int], None] | None
    ) -> None:
        self.key = part_key(lease, lease.token, 0)
        self.folder = (root / self.key).parent
        self.is_named = False
        self.is_closing = False
        self._group = group
        self._root = root
        self._lease = lease
        self._on_commit = on_commit
        self._descriptor: int | None = None
        self._refusal: Exception | None = None
        self._queue: list[tuple[int, OutputLine]] = []
        self._taken: list[bytes] = []
        self._counted = self._taken_counted = self._durable_counted = 0
        self._taken_tally = self._durable_tally = Tally()
        self._durable_bytes = 0

    @property
    def durable_tally(self) -> Tally:
        return self._durable_tally

    @property
    def pinned(self) -> PinnedPart | None:
        return PinnedPart(self.key, self._durable_bytes) if self._durable_bytes else None

    @property
    def pending_count(self) -> int:
        """Records that are not durable yet."""
        return self._counted - self._durable_counted

    @property
    def has_file(self) -> bool:
        return self._descriptor is not None

    def append(self, ordinal: int, output: OutputLine) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._counted == self._durable_counted:
            self._group.queued(self)
        self._queue.append((ordinal, output))
        self._counted += 1
        self._group.queued_bytes += HEADER_BYTES + len(output.text)

    async def flush(self) -> None:
        target = self._counted
        while self._durable_counted < target:
            await self._group.committed()

    async def close(self) -> None:
        """When it is cancelled, the file is let go once what was appended is durable."""
        self.refuse(ValueError(f"part {self.key} is closed"))
        self.is_closing = True
        await self.flush()
        self._group.forget(self)

    def refuse(self, refusal: Exception) -> None:
        """From now on `append` raises `refusal`; the first one stays."""
        self._refusal = self._refusal or refusal

    def take(self) -> Sequence[bytes]:
        """What is to be written behind the durable bytes: also what an earlier try could not write."""
        pieces, tally = pack_records(self._queue)
        self._queue = []
        self._taken += pieces
        self._taken_counted = self._counted
        self._taken_tally = self._taken_tally.plus(tally)
        return self._taken

    def write_out(self, records: bytes) -> None:
        """In the disk thread."""
        if self._descriptor is None:
            self._descriptor = self._create()
        written = 0
        point("part.before_write")
        with memoryview(records) as view:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], self._durable_bytes + written)
        point("part.written")
        os.fdatasync(self._descriptor)
        point("part.synced")

    def _create(self) -> int:
        """A file of our own. One may lie under our token: a store brought back from a copy counts again."""
        self.folder.mkdir(exist_ok=True)
        for copy in count():
            key = part_key(self._lease, self._lease.token, copy)
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(self._root / key, flags, 0o600)
                self.key = key
                return descriptor
        raise AssertionError("count() has no end")

    def settle(self) -> int:
        """What was taken is durable and counts. Returns its size in bytes."""
        size_bytes = sum(map(len, self._taken))
        newly_counted = self._taken_counted - self._durable_counted
        self._taken = []
        self._durable_bytes += size_bytes
        self._durable_counted = self._taken_counted
        self._durable_tally = self._taken_tally
        if self._on_commit is not None:
            self._on_commit(newly_counted)
        return size_bytes

    def let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def part_key(lease: Lease, token: int, copy: int) -> str:
    name = f"{token}-{copy}" if copy else f"{token}"
    return f"{lease.segment.batch_id}/{lease.segment.number}.{name}.part"
