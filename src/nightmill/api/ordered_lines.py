"""Finds lines in a stored file whose lines are in the order of a number, by bisection.

Output and error files have their lines in the order of the input, and a line's id has its ordinal; a
validation report is in the order of its lines. So a line is found with some twenty short reads, however long
the file is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nightmill.api.blob_reads import end_of_line, read_bytes, start_of_line
from nightmill.blobs import Blobs

_HEAD_BYTES: Final = 256
_NEAR_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A line of a file: its place, and its text or the beginning of it."""

    offset: int
    size_bytes: int
    text: bytes


class OrderedLines:
    """The lines of one file.

    Args:
        rank: the number of a line, from its beginning; it grows from line to line.
    """

    def __init__(self, blobs: Blobs, key: str, size_bytes: int, *, rank: Callable[[bytes], int]) -> None:
        self._blobs = blobs
        self._key = key
        self._size_bytes = size_bytes
        self._rank = rank

    async def find(self, wanted: int, *, most_bytes: int) -> StoredLine | None:
        """The line with this number. Raises FileNotFoundError.

        Args:
            most_bytes: of its text.
        """
        offset = await self._first_from(wanted)
        if offset >= self._size_bytes or await self._rank_at(offset) != wanted:
            return None
        end = await end_of_line(self._blobs, self._key, offset, size_bytes=self._size_bytes)
        text = await read_bytes(self._blobs, self._key, offset, min(end - offset, most_bytes))
        return StoredLine(offset, end - offset, text)

    async def around(self, number: int) -> tuple[int | None, int | None]:
        """The numbers of the lines before and after a number, which itself need not be there."""
        offset = await self._first_from(number)
        before = None
        if offset:
            before = await self._rank_at(await start_of_line(self._blobs, self._key, offset))
        after = await self._first_from(number + 1)
        return before, await self._rank_at(after) if after < self._size_bytes else None

    async def _first_from(self, wanted: int) -> int:
        """The offset of the first line with at least this number; the size of the file without one."""
        low, high = 0, self._size_bytes  # the line begins in [low, high], or nowhere before high
        while high - low > _NEAR_BYTES:
            middle = (low + high) // 2
            start = await self._next_line(middle)
            if start >= high or await self._rank_at(start) >= wanted:
                high = middle
            else:
                low = start
        block = await read_bytes(self._blobs, self._key, low, 2 * _NEAR_BYTES)
        at = 0
        while (end := block.find(b"\n", at)) >= 0:
            if self._rank(block[at : min(end, at + _HEAD_BYTES)]) >= wanted:
                return low + at
            at = end + 1
        low += at
        while low < self._size_bytes and await self._rank_at(low) < wanted:
            low = await self._next_line(low)
        return min(low, self._size_bytes)

    async def _next_line(self, place: int) -> int:
        """Where the first line behind the line break at or after `place` begins."""
        return 1 + await end_of_line(self._blobs, self._key, place, size_bytes=self._size_bytes)

    async def _rank_at(self, offset: int) -> int:
        return self._rank(await read_bytes(self._blobs, self._key, offset, _HEAD_BYTES))
