"""A segment a worker holds: its unsent lines, what is in flight, and the part its answers go to.

Duty: the bookkeeping of one lease in one process. Promise: every line of the segment is in exactly one
place, unsent, in flight (waiting for a retry counts), settled, or given up. Not its duty: when to send and
what to write.
"""

from collections.abc import Sequence, Set

import msgspec

from nightmill.blobs import Blobs
from nightmill.core.batch import Status, Tally
from nightmill.core.request_line import RequestLine, slice_line
from nightmill.core.segment import INDEX_RECORD_BYTES, IndexedLine, Lease, PinnedPart, Report, unpack_lines
from nightmill.ids import output_line_id
from nightmill.parts import PartWriter


class PendingLine(msgspec.Struct, eq=False, gc=False):
    """A line that was taken to be sent. `attempts` counts those that may be the line's own fault, `guess` is
    how many tokens its attempt was taken to need."""

    segment: "LeasedSegment"
    ordinal: int
    request: RequestLine
    attempts: float = 0
    guess: float = 0.0


class LeasedSegment:
    """One lease at work.

    Args:
        earlier: what the pinned parts of earlier tokens answer already.
        confirmed_until: monotonic time up to which the lease is surely ours.
    """

    __slots__ = (
        "_earlier",
        "_line_id_start",
        "_lines",
        "_offset",
        "_text",
        "abandoned",
        "batch_id",
        "confirmed_until",
        "in_flight",
        "is_lost",
        "lease",
        "pinned",
        "stop_at",
        "stopped_by",
        "unsent",
        "writer",
    )

    def __init__(
        self,
        lease: Lease,
        *,
        writer: PartWriter,
        text: bytes,
        offset: int,
        lines: Sequence[IndexedLine],
        pinned: tuple[PinnedPart, ...],
        earlier: Tally,
        confirmed_until: float,
    ) -> None:
        self.lease = lease
        self.batch_id = lease.segment.batch_id
        self.pinned = pinned
        self.confirmed_until = confirmed_until
        self.unsent = len(lines)
        self.in_flight = 0
        self.abandoned = 0
        self.is_lost = False
        self.stopped_by: Status | None = None
        self.stop_at = 0.0
        self._earlier = earlier
        self.writer = writer
        self._text = memoryview(text)
        self._offset = offset
        self._lines = iter(lines)
        self._line_id_start = output_line_id(self.batch_id, 0)[:-8].encode("ascii")

    @property
    def key(self) -> tuple[str, int]:
        return (self.batch_id, self.lease.segment.number)

    @property
    def is_over(self) -> bool:
        """Nothing will be sent or settled any more.

        A line that was given up for want of time keeps the segment until its batch ends: given back, it
        would be sent again and again without a pause.
        """
        if self.in_flight:
            return False
        return self.is_lost or self.stopped_by is not None or not (self.unsent or self.abandoned)

    @property
    def parts(self) -> tuple[PinnedPart, ...]:
        own = self.writer.pinned
        return self.pinned if own is None else (*self.pinned, own)

    @property
    def report(self) -> Report:
        tally = self._earlier.plus(self.writer.durable_tally)
        return Report(self.batch_id, self.lease.segment.number, self.lease.token, tally)

    def take(self) -> PendingLine:
        """The next unsent line, which is in flight from now on."""
        line = next(self._lines)
        self.unsent -= 1
        self.in_flight += 1
        start = line.offset - self._offset
        return PendingLine(self, line.ordinal, slice_line(self._text[start : start + line.length_bytes]))

    def line_id(self, ordinal: int) -> bytes:
        """`output_line_id` of a line of this segment."""
        return b"%b%08x" % (self._line_id_start, ordinal)

    def stop(self, status: Status, *, at: float) -> None:
        """Sends nothing more; what is in flight may finish until monotonic time `at`."""
        if self.stopped_by is None:
            self.stopped_by, self.stop_at = status, at
            self.unsent = 0


async def read_segment(
    blobs: Blobs, lease: Lease, answered: Set[int]
) -> tuple[bytes, int, list[IndexedLine]]:
    """The text that spans the segment's lines, its offset in the input, and the lines not yet answered."""
    segment = lease.segment
    records = await blobs.read(
        lease.index_blob_key, segment.first * INDEX_RECORD_BYTES, segment.count * INDEX_RECORD_BYTES
    )
    lines = [line for line in unpack_lines(records) if line.ordinal not in answered]
    if not lines:
        return b"", 0, lines
    start = min(line.offset for line in lines)
    end = max(line.offset + line.length_bytes for line in lines)
    return await blobs.read(lease.input_blob_key, start, end - start), start, lines
