"""The line index, segments and leases: who may answer which lines, and what proves it.

A batch's **line index** has one fixed-size record per request line, in the order the lines will be
sent; a line's *ordinal* is its place in the input, counted from 0 over request lines (blank lines don't
count). A **segment** is a run of the index and the unit of lease. A **lease** carries a token that grows
by one each time the segment is leased. A **slice** is a run of segments that one finalizer joins; only a
huge batch is cut into slices. Only the holder of the newest token may write for the segment;
whoever takes over first *pins* the parts it finds (key and length), and bytes written past a pin are
never read. No I/O.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap

import msgspec

from nightmill.core.batch import Status, Tally
from nightmill.ids import BatchId

_RECORD = struct.Struct("<QIIQ")

INDEX_RECORD_BYTES = _RECORD.size


class IndexedLine(msgspec.Struct, frozen=True, gc=False):
    """Where one request line lies: byte `offset` and `length_bytes` (without its line break) in the input."""

    offset: int
    length_bytes: int
    ordinal: int
    sort_key: int = 0


def pack_line(offset: int, length_bytes: int, ordinal: int, sort_key: int = 0) -> bytes:
    return _RECORD.pack(offset, length_bytes, ordinal, sort_key)


def unpack_lines(records: bytes) -> Iterator[IndexedLine]:
    return starmap(IndexedLine, _RECORD.iter_unpack(records))


@dataclass(frozen=True, slots=True)
class Segment:
    """Records `first` to `first + count` of a batch's line index; `number` counts segments from 0."""

    batch_id: BatchId
    number: int
    first: int
    count: int


def cut_segments(batch_id: BatchId, *, total: int, lines_per_segment: int) -> Iterator[Segment]:
    for number, first in enumerate(range(0, total, lines_per_segment)):
        yield Segment(batch_id, number, first, min(lines_per_segment, total - first))


@dataclass(frozen=True, slots=True)
class PinnedPart:
    """A part and how much of it counts. What lies past `length_bytes` is never read."""

    key: str
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's right to a segment, with all it needs to answer its lines.

    `pinned` are the parts of earlier tokens that the store knows of; with `token` above 1 the holder looks
    for more (parts whose holder died before it could report) and pins what it finds.
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


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder says of one leased segment: durable answers so far. Only ever grows under one token."""

    batch_id: BatchId
    number: int
    token: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class BeatReply:
    """Answer to a heartbeat: leases that were lost, and batches that no longer want lines sent.

    `stopping` maps a batch to the status that says why (cancelling, finalizing or a terminal one).
    """

    lost: frozenset[tuple[BatchId, int]]
    stopping: dict[BatchId, Status]


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """A segment as the finalizer reads it: its newest token, its pinned parts, what they answer."""

    segment: Segment
    token: int
    pinned: tuple[PinnedPart, ...]
    tally: Tally
    is_done: bool
