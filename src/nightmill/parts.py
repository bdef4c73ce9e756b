"""Durable answers: append, group commit, pin, read back after a crash.

A part holds the answers written under one (batch, segment, token). Each record is a fixed header (magic,
ordinal, kind, usage, length, CRC-32 of all of it) and the finished output line. A torn or foreign tail is
cut at the last whole record and never parsed.

Promise: `PartWriter.append` only queues; the commit callback runs after the bytes are on stable storage.
Not its duty: who may write (the store's leases) and in which order lines come out (the finalizer).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nightmill.batch import Tally
from nightmill.ids import BatchId
from nightmill.line import OutputLine
from nightmill.segment import Lease, PinnedPart


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One settled line of the batch, by its ordinal."""

    ordinal: int
    output: OutputLine


class PartWriter(Protocol):
    """The part of one lease. Made lazily: no file until the first answer."""

    @property
    def durable_tally(self) -> Tally:
        """Answers on stable storage under this token. Grows only after a commit."""
        ...

    @property
    def pinned(self) -> PinnedPart | None:
        """Key and durable length, or None while nothing is durable."""
        ...

    def append(self, ordinal: int, output: OutputLine) -> None:
        """Queues one record for the next commit."""
        ...

    async def flush(self) -> None:
        """Returns when everything appended so far is durable."""
        ...

    async def close(self) -> None:
        """Flushes, then lets go of the file."""
        ...


class Parts(Protocol):
    """Parts of all leases of one worker; owns the group commit."""

    def open(self, lease: Lease, on_commit: Callable[[int], None] | None = None) -> PartWriter:
        """A writer under the lease's token. `on_commit` gets the number of records that became durable."""
        ...

    async def room(self) -> None:
        """Waits while more bytes are queued than `settings.parts.buffer_bytes` allows (back-pressure)."""
        ...

    async def find(self, lease: Lease) -> Sequence[PinnedPart]:
        """Every part of the segment under tokens below the lease's, each cut at its last whole record.

        Parts the lease already names as pinned come back with exactly their pinned length.
        """
        ...

    def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[PartRecord]:
        """Records of the parts in the order given; a CRC mismatch inside a pinned length raises."""
        ...

    async def delete(self, batch_id: BatchId) -> None: ...
    async def close(self) -> None: ...
