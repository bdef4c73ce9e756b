"""Decides which answer of a request line stands: the first, in the order in which parts are read.

A line has two answers when a worker lost its lease after the line was sent, or after a restore of an older
database. Every reader of answers (worker, finalizer, move, check, torture test) decides by this module, so
that all of them choose the same answer. The order of the parts is part of the decision; see `Parts.find`.
"""

from collections.abc import AsyncIterator, Sequence

from nightmill.core.segment import PinnedPart, SegmentResult
from nightmill.parts.protocol import Parts
from nightmill.parts.record import PartRecord


class FirstAnswers:
    """The lines of a segment that have an answer so far. Give all records of the segment, in order."""

    __slots__ = ("_ordinals",)

    def __init__(self) -> None:
        self._ordinals: set[int] = set()

    def stands(self, record: PartRecord) -> bool:
        """Whether the record is the first answer of its line."""
        if record.ordinal in self._ordinals:
            return False
        self._ordinals.add(record.ordinal)
        return True


async def standing_records(parts: Parts, pinned: Sequence[PinnedPart]) -> AsyncIterator[PartRecord]:
    """For each line answered in the parts of one segment, the answer that stands.

    Raises:
        DamageError: a pinned length holds anything but whole records.
    """
    first = FirstAnswers()
    async for records in parts.read(pinned):
        for record in records:
            if first.stands(record):
                yield record


async def counted_parts(parts: Parts, result: SegmentResult, *, below: int) -> Sequence[PinnedPart]:
    """The parts that hold the answers of a segment, in the order in which they are read.

    Of a segment that is done these are exactly the pinned parts. Otherwise the last lease holder may have
    died before it could report, and its parts count too.

    Args:
        below: parts under this token and newer ones do not count.
    """
    if result.is_done:
        return result.pinned
    return await parts.find(result.segment, below=below, pinned=result.pinned)
