"""The writer of one part: queues answers, and counts each answer once it is durable.

The writer does no I/O. A sink (`folder`, `objects`) takes the queued bytes, makes them durable in its own
rhythm and reports back; which holder may write at all is decided by the store's leases.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import PinnedPart, Segment
from nightmill.parts.record import HEADER_BYTES, pack_records, part_key

_MOST_TAKEN_BYTES = 64 << 20  # a commit needs memory for these bytes once more


class Sink(Protocol):
    """Makes the records of all open writers of a process durable.

    For each writer the sink calls `take`, writes those bytes until the write succeeds, and calls `settle`.
    """

    queued_bytes: int
    """Bytes of records, over all writers, that are not durable yet."""

    def queued(self, writer: "PartWriter") -> None:
        """The writer has a first record to write, or `full_bytes` of records."""
        ...

    async def commit(self, writer: "PartWriter") -> None:
        """Starts the writer's next commit at once, and waits until any commit has ended.

        Raises UnavailableError when the sink commits nothing any more.
        """
        ...

    async def release(self, writer: "PartWriter") -> None:
        """Closes the file, or ends the task, of a writer whose records are all durable."""
        ...


class PartWriter:
    """Appends answers to the part of one segment under one token.

    `append`, `flush`, `close`, `durable_tally` and `pinned` are for the lease holder, the rest for the sink.
    The tally and the durable length move together, only in `settle`, to exactly what `take` returned.

    Args:
        full_bytes: the sink is notified again when so many bytes are queued.
    """

    def __init__(self, sink: Sink, segment: Segment, token: int, *, full_bytes: int = sys.maxsize) -> None:
        self._sink = sink
        self._segment = segment
        self._token = token
        self._full_bytes = full_bytes
        self._failure: Exception | None = None
        self._refusal: Exception | None = None
        self._records: list[tuple[int, OutputLine]] = []
        self._taken: list[bytes] = []
        self._taken_bytes = 0
        self._taken_tally = Tally()
        self._appended = self._taken_count = self._durable = 0
        self.key = part_key(segment, token)
        self.is_ending = False
        self.queued_bytes = 0
        """Bytes of the records that were not taken yet."""
        self.durable_bytes = 0
        self.durable_tally = Tally()
        """The answers on stable storage under this token."""

    @property
    def name(self) -> str:
        """The same for all writers under this segment and token."""
        return part_key(self._segment, self._token)

    @property
    def pinned(self) -> PinnedPart | None:
        """Key and durable length, or None while nothing is durable."""
        return PinnedPart(self.key, self.durable_bytes) if self.durable_bytes else None

    @property
    def pending_count(self) -> int:
        """The number of records that are not durable yet."""
        return self._appended - self._durable

    def append(self, ordinal: int, output: OutputLine) -> None:
        """Queues one record for the next commit. Raises the refusal of a writer that was closed or failed."""
        if self._refusal is not None:
            raise self._refusal
        was_empty = not self.queued_bytes
        self._records.append((ordinal, output))
        self._appended += 1
        size_bytes = HEADER_BYTES + len(output.text)
        self.queued_bytes += size_bytes
        self._sink.queued_bytes += size_bytes
        if was_empty or self.queued_bytes >= self._full_bytes:
            self._sink.queued(self)

    async def flush(self) -> None:
        """Returns when everything appended so far is durable. Raises the failure of a failed writer."""
        target = self._appended
        while self._durable < target:
            if self._failure is not None:
                raise self._failure
            await self._sink.commit(self)

    async def close(self) -> None:
        """Flushes, then releases the file. A cancelled close still makes durable what was appended."""
        self.end()
        await self.flush()
        await self._sink.release(self)

    def end(self) -> None:
        """Refuses further records. The sink releases the writer once all records are durable."""
        self.is_ending = True
        self._refusal = self._refusal or ValueError(f"part {self.key} is closed")

    def fail(self, failure: Exception) -> None:
        """Drops what is not durable, and raises `failure` from now on. The first failure stays."""
        self._failure = self._failure or failure
        self._refusal = self._refusal or failure
        self._sink.queued_bytes -= self._taken_bytes + self.queued_bytes
        self._records, self._taken = [], []
        self._taken_bytes = self.queued_bytes = 0

    def use_copy(self, copy: int) -> None:
        """Takes the key of another copy, because a part that is not ours exists under the present key."""
        self.key = part_key(self._segment, self._token, copy)

    def take(self) -> Sequence[bytes]:
        """The bytes to write behind the durable ones, including those that an earlier commit failed to write.

        The same bytes come first at each call until `settle`: a length that another process has pinned
        meanwhile stays valid. Records beyond `_MOST_TAKEN_BYTES` wait for the next call.
        """
        records, self._records = self._records, []
        if self.queued_bytes > _MOST_TAKEN_BYTES:
            count = _count_within(records, _MOST_TAKEN_BYTES)
            records, self._records = records[:count], records[count:]
        pieces, tally = pack_records(records)
        taken_bytes = sum(map(len, pieces))
        self._taken += pieces
        self._taken_bytes += taken_bytes
        self.queued_bytes -= taken_bytes
        self._taken_count = self._appended - len(self._records)
        self._taken_tally = self._taken_tally.plus(tally)
        return self._taken

    def settle(self) -> None:
        """Counts the taken records, which are durable now."""
        self._sink.queued_bytes -= self._taken_bytes
        self.durable_bytes += self._taken_bytes
        self._taken_bytes = 0
        self._taken = []
        self._durable = self._taken_count
        self.durable_tally = self._taken_tally


def _count_within(records: Sequence[tuple[int, OutputLine]], most_bytes: int) -> int:
    """How many of the first records have so many bytes in sum; at least one."""
    size_bytes = 0
    for count, (_, output) in enumerate(records):
        size_bytes += HEADER_BYTES + len(output.text)
        if count and size_bytes > most_bytes:
            return count
    return len(records)
