"""Slices: a huge batch is cut into runs of segments, which several finalizers join at once. No I/O.

    waiting ──leased, token + 1──▶ leased ──joined──▶ done
       ▲                             │
       └─released, or lease expired──┘

- waiting: a finalizer cuts a huge batch into slices in this state; any finalizer moves a slice on by leasing
  it.
- leased: the holder joins the answers of the slice's segments and records the pieces; when the holder dies,
  the lease expires and the slice waits again.
- done: final. The finalizer that finds every slice of a batch done publishes the output files.

A batch that is not huge has no slices: a single finalizer joins it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nightmill.core.batch import Tally
from nightmill.ids import BatchId


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of segments that one finalizer joins: segments `first` to `first + count` of a batch.

    `number` counts slices from 0. Not to be confused with a segment, which is a run of lines.
    """

    batch_id: BatchId
    number: int
    first: int
    count: int


def cut_slices(batch_id: BatchId, *, segments: int, segments_per_slice: int) -> Iterator[Slice]:
    """The slices of a batch with so many segments; only the last may have fewer segments."""
    for number, first in enumerate(range(0, segments, segments_per_slice)):
        yield Slice(batch_id, number, first, min(segments_per_slice, segments - first))


@dataclass(frozen=True, slots=True)
class JoinedPiece:
    """One slice's part of the output or error file, as a blob of its own."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JoinedSlice:
    """A joined slice.

    Args:
        output: the piece of the output file; None if no line of the slice belongs there.
        error: the piece of the error file; None if no line of the slice belongs there.
        lines: lines of the slice.
        missing: lines without an answer, which the error file lists.
        tally: of the lines with an answer.
    """

    slice: Slice
    output: JoinedPiece | None
    error: JoinedPiece | None
    lines: int
    missing: int
    tally: Tally
