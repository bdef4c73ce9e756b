"""One part as a file, written by one writer only."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Protocol

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Lease, PinnedPart
from nightmill.failpoints import failpoint
from nightmill.parts.queue import RecordQueue


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
        self._descriptor: int | None = None
        self._queue = RecordQueue(on_commit)
        self._taken: list[bytes] = []

    @property
    def durable_tally(self) -> Tally:
        return self._queue.durable_tally

    @property
    def pinned(self) -> PinnedPart | None:
        durable_bytes = self._queue.durable_bytes
        return PinnedPart(self.key, durable_bytes) if durable_bytes else None

    @property
    def pending_count(self) -> int:
        """Records that are not durable yet."""
        return self._queue.pending_count

    @property
    def has_file(self) -> bool:
        return self._descriptor is not None

    def append(self, ordinal: int, output: OutputLine) -> None:
        is_clean = not (self._queue.queued_bytes or self._queue.taken_bytes)
        self._group.queued_bytes += self._queue.append(ordinal, output)
        if is_clean:
            self._group.queued(self)

    async def flush(self) -> None:
        target = self._queue.counted
        while not self._queue.is_durable(target):
            await self._group.committed()

    async def close(self) -> None:
        """When it is cancelled, the file is let go once what was appended is durable."""
        self.refuse(ValueError(f"part {self.key} is closed"))
        self.is_closing = True
        await self.flush()
        self._group.forget(self)

    def refuse(self, refusal: Exception) -> None:
        """From now on `append` raises `refusal`; the first one stays."""
        self._queue.refuse(refusal)

    def take(self) -> Sequence[bytes]:
        """What is to be written behind the durable bytes: also what an earlier try could not write."""
        self._taken += self._queue.take()
        return self._taken

    def write_out(self, records: bytes) -> None:
        """In the disk thread."""
        if self._descriptor is None:
            self._descriptor = self._create()
        written = 0
        failpoint("part.before_write")
        with memoryview(records) as view:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], self._queue.durable_bytes + written)
        failpoint("part.written")
        os.fdatasync(self._descriptor)
        failpoint("part.synced")

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
        self._taken = []
        return self._queue.settle()

    def let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def part_key(lease: Lease, token: int, copy: int) -> str:
    name = f"{token}-{copy}" if copy else f"{token}"
    return f"{lease.segment.batch_id}/{lease.segment.number}.{name}.part"
