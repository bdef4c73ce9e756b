"""The interface of a store of parts. `FolderParts` and `ObjectParts` implement the interface."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId
from nightmill.parts.record import PartRecord, PartTail, TextPlace
from nightmill.parts.writer import PartWriter


class Parts(Protocol):
    """All parts that one process writes and reads."""

    @property
    def reads_at_once(self) -> int:
        """How many segments to read at once to hide the latency of the storage."""
        ...

    @property
    def stalled(self) -> str | None:
        """Why answers can't be made durable at present, or None. Send no request line while this is set."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether `room` would wait."""
        ...

    async def room(self) -> None:
        """Waits while more bytes are queued than `worker.buffer_bytes` allows, or writing is stalled."""
        ...

    def open(self, segment: Segment, token: int) -> PartWriter:
        """A writer of the part under the segment and the token. Creates nothing before the first answer.

        Raises:
            ValueError: a writer under the same token is open, or the parts are closed.
        """
        ...

    async def find(
        self, segment: Segment, *, below: int, pinned: Sequence[PinnedPart] = ()
    ) -> Sequence[PinnedPart]:
        """The parts of the segment under tokens less than `below`, in the order in which they are read.

        The pinned parts come first, with exactly their pinned length. Parts that are not pinned follow, that
        of the newest token first, each cut at the end of its last whole record and known to be on stable
        storage. A holder writes only after it has pinned what it found, so an older part beside its own
        arrived later, and the holder's answers, which may have been read meanwhile, stand.
        """
        ...

    def read(self, parts: Sequence[PinnedPart]) -> AsyncIterator[Sequence[PartRecord]]:
        """All records of the parts in the order given, many at a time.

        Use `reader.standing_records` to read answers: a line may have several records.

        Raises:
            DamageError: a pinned length holds anything but whole records. The records before come first.
        """
        ...

    async def tail(self, tail: PartTail) -> tuple[Sequence[PartRecord], PartTail]:
        """The durable records behind a place in a part that may still be written, about 1 MiB of them, and
        the place behind them. Without any, the same place.

        Whether they stand is for the caller to decide (`reader`): the part may be pinned at a shorter length.
        """
        ...

    async def text(self, place: TextPlace) -> bytes:
        """The text of a record that `read` has returned.

        Raises:
            DamageError: the text is not there any more.
        """
        ...

    async def batches(self) -> Sequence[BatchId]:
        """Every batch that has parts."""
        ...

    async def delete(self, batch_id: BatchId) -> None:
        """Deletes all parts of the batch, if there are any."""
        ...

    async def close(self) -> None:
        """Tries a last time to make the queued answers durable.

        Raises:
            UnavailableError: the storage did not take all of them.
        """
        ...
