"""Leases and fences: which worker may answer which lines, and how late writes are kept out. No I/O.

The model. A batch's **line index** has one record of fixed size per request line, in the order of the input;
lines are sent in about this order (see `core.schedule`). The *ordinal* of a line is its place in the input,
counted from 0 over request lines; blank lines do not count. A **segment** is a run of the index, some hundred
lines, and the unit of lease; the line is the unit of answer. A **lease** is one worker's right to a segment
until it expires. Its **token** grows by one each time the segment is leased. Answers go to a **part**, one
append-only blob per segment and token.

    waiting ──leased, token + 1──▶ leased ──all lines answered──▶ done
       ▲                              │
       └──released, or lease expired──┘

- waiting: intake creates segments in this state when it accepts a batch. A worker moves a segment on when it
  leases the segment.
- leased: the lease holder renews the lease with each heartbeat. The holder completes the segment when every
  line has an answer, or releases it when it drains or the batch stops. Maintenance puts a segment whose lease
  has expired back to waiting.
- done: final. The finalizer joins the answers once the batch has no lines left to send.

The fence. Every statement that writes for a segment names the token in its WHERE clause, so a holder whose
token is not the newest writes nothing to the store. The store does not see writes to parts, so they are
fenced by pins: a new holder first finds the parts of earlier tokens and *pins* each with its length. Bytes
that an earlier holder writes past a pin are never read.

Failures. A worker that dies leaves its durable answers in its part; the next holder pins the part and sends
only the other lines. A worker that pauses past its last confirmed lease starts no attempt. Hence a line may
be sent twice, and is answered once: its first pinned answer stands.

Not to be confused: a **slice** is a run of segments that one finalizer joins (see `core.slice`).
"""

import struct
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import starmap

import msgspec

from nightmill.core.batch import Status, Tally
from nightmill.ids import BatchId, ProjectId

_RECORD = struct.Struct("<QIIQ")
_NO_PROJECT = ProjectId("")

INDEX_RECORD_BYTES = _RECORD.size


class IndexedLine(msgspec.Struct, frozen=True, gc=False):
    """One record of the line index: where a request line lies in the input file.

    Args:
        offset: of the line's first byte.
        length_bytes: without the line break.
        ordinal: the line's place in the input, counted from 0.
        sort_key: by which intake may order the index.
    """

    offset: int
    length_bytes: int
    ordinal: int
    sort_key: int = 0


def pack_line(offset: int, length_bytes: int, ordinal: int, sort_key: int = 0) -> bytes:
    """The record of an `IndexedLine`."""
    return _RECORD.pack(offset, length_bytes, ordinal, sort_key)


def unpack_lines(records: bytes) -> Iterator[IndexedLine]:
    """The lines of consecutive records."""
    return starmap(IndexedLine, _RECORD.iter_unpack(records))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of lines that is leased as a whole: records `first` to `first + count` of a batch's line index.

    `number` counts segments from 0. With 500 lines per segment, segment 2 has the records 1,000 to 1,499. A
    segment of long lines has fewer records.
    """

    batch_id: BatchId
    number: int
    first: int
    count: int


class SegmentCutter:
    """Cuts a line index into segments. Give all its records to `take`, in order.

    Args:
        most_lines: of one segment.
        most_bytes: from the first to the last line of a segment, which a worker reads at once. A longer line
            is a segment of its own.
        canary_lines: so many lines at the beginning are segments of their own.
    """

    def __init__(self, batch_id: BatchId, *, most_lines: int, most_bytes: int, canary_lines: int = 0) -> None:
        self._batch_id = batch_id
        self._most_lines = most_lines
        self._most_bytes = most_bytes
        self._canary_bytes = canary_lines * INDEX_RECORD_BYTES or None
        self._cut: list[Segment] = []
        self._first = self._count = self._start = 0
        self._canary_segments = 0

    @property
    def canary_segments(self) -> int | None:
        """How many segments the canary lines are; None if no line follows them."""
        return self._canary_segments or None

    def take(self, records: bytes) -> None:
        if self._canary_bytes is None:
            self._take(records)
            return
        canary = records[: self._canary_bytes]
        self._take(canary)
        self._canary_bytes -= len(canary)
        if len(canary) < len(records):
            self._end(self._count)
            self._count, self._canary_bytes, self._canary_segments = 0, None, len(self._cut)
            self._take(records[len(canary) :])

    def _take(self, records: bytes) -> None:
        most_lines, most_bytes, count, start = self._most_lines, self._most_bytes, self._count, self._start
        for offset, length_bytes, _, _ in _RECORD.iter_unpack(records):
            if count == most_lines or (count and offset + length_bytes - start > most_bytes):
                self._end(count)
                count = 0
            if not count:
                start = offset
            count += 1
        self._count, self._start = count, start

    def segments(self) -> list[Segment]:
        """The segments of all records taken. Call once, at the end."""
        if self._count:
            self._end(self._count)
        return self._cut

    def _end(self, count: int) -> None:
        self._cut.append(Segment(self._batch_id, len(self._cut), self._first, count))
        self._first += count


@dataclass(frozen=True, slots=True)
class PinnedPart:
    """A part and how much of it counts. Bytes past `length_bytes` are never read."""

    key: str
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's right to a segment, with all that the worker needs to answer the lines.

    Args:
        token: grows by one with each lease of the segment.
        pinned: the parts of earlier tokens that the store knows of. With a token above 1 the holder looks for
            further parts, whose holder died before its report, and pins them.
        tally: of the lines that the pinned parts answer.
        model: the batch's model; None if its lines name several.
        deadline: Unix seconds at which the batch expires.
        ttl_s: seconds until the lease expires unless it is renewed.
        project_id: of the batch, as `batch_sequence` (grows with each batch), `batch_bytes` (its input) and
            `priority`.
        concurrency: the batch's own limit of attempts in flight, if it has one. Then this worker is the only
            one that has leases of the batch.
        records_attempts: whether the worker records each attempt.
    """

    segment: Segment
    token: int
    pinned: tuple[PinnedPart, ...]
    tally: Tally
    endpoint: str
    model: str | None
    input_blob_key: str
    index_blob_key: str
    deadline: int
    ttl_s: float
    project_id: ProjectId = _NO_PROJECT
    batch_sequence: int = 0
    batch_bytes: int = 0
    priority: int = 0
    concurrency: int | None = None
    records_attempts: bool = False


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """The durable answers of one leased segment so far; the tally never shrinks under one token.

    `retries` are the attempts of this lease beyond the first of a line; they count when the lease ends.
    """

    batch_id: BatchId
    number: int
    token: int
    tally: Tally
    retries: int = 0


@dataclass(frozen=True, slots=True)
class BatchTerms:
    """What the holders of a batch's segments have to follow, as the store has it now.

    Args:
        is_paused: then no further line is sent, and attempts in flight may finish.
        deadline: Unix seconds.
        concurrency: the batch's own limit of attempts in flight; None without one.
        are_lines_wanted: whether a client asks where lines of the batch are.
    """

    status: Status
    is_paused: bool
    deadline: int
    concurrency: int | None
    are_lines_wanted: bool = False


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The answer to a heartbeat.

    Args:
        lost: batch and number of the segments whose lease was lost.
        terms: of the batches that the heartbeat names.
    """

    lost: frozenset[tuple[BatchId, int]]
    terms: Mapping[BatchId, BatchTerms]

    @property
    def wanted(self) -> Set[BatchId]:
        """Batches whose lines a client asks for."""
        return {batch_id for batch_id, terms in self.terms.items() if terms.are_lines_wanted}


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """A segment as the finalizer reads it: the newest token, the pinned parts, and the tally of their
    answers.
    """

    segment: Segment
    token: int
    pinned: tuple[PinnedPart, ...]
    tally: Tally
    is_done: bool
