"""What nightmill asks of the place where answers become durable."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Lease, PinnedPart
from nightmill.ids import BatchId


class PartRecord(msgspec.Struct, frozen=True, gc=False):
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

    @property
    def reads_at_once(self) -> int:
        """So many segments read at once hide how long the place takes to answer."""
        ...

    @property
    def stalled(self) -> str | None:
        """Why answers can't be made durable right now, or None. Send nothing meanwhile."""
        ...

    def open(self, lease: Lease, on_commit: Callable[[int], None] | None = None) -> PartWriter:
        """A writer under the lease's token. `on_commit` gets the number of records that became durable."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether `room` would wait."""
        ...

    async def room(self) -> None:
        """Waits while more bytes are queued than `worker.buffer_bytes` allows (back-pressure)."""
        ...

    async def find(self, lease: Lease) -> Sequence[PinnedPart]:
        """Every part of the segment under tokens below the lease's, each cut at its last whole record.

        Parts the lease already names as pinned come back with exactly their pinned length.
        """
        ...

    def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[PartRecord]:
        """Records of the parts in the order given; damage inside a pinned length raises DamageError."""
        ...

    async def batches(self) -> Sequence[BatchId]:
        """Every batch that has parts."""
        ...

    async def delete(self, batch_id: BatchId) -> None: ...
    async def close(self) -> None: ...
