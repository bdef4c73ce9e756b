"""Slices: a huge batch is cut into runs of segments, which several finalizers join at once. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass

from nightmill.core.batch import Tally
from nightmill.ids import BatchId


@dataclass(frozen=True, slots=True)
class Slice:
    """Segments `first` to `first + count` of a batch; `number` counts slices from 0."""

    batch_id: BatchId
    number: int
    first: int
    count: int


def cut_slices(batch_id: BatchId, *, segments: int, segments_per_slice: int) -> Iterator[Slice]:
    for number, first in enumerate(range(0, segments, segments_per_slice)):
        yield Slice(batch_id, number, first, min(segments_per_slice, segments - first))


@dataclass(frozen=True, slots=True)
class JoinedPiece:
    """A slice's run of the output or error file, and the blob it lies in."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class JoinedSlice:
    """What became of a slice. A file in which none of its lines stands has no piece of it.

    `missing` of its `lines` were answered by nobody and stand in the error file; `tally` counts the others.
    """

    slice: Slice
    output: JoinedPiece | None
    error: JoinedPiece | None
    lines: int
    missing: int
    tally: Tally
