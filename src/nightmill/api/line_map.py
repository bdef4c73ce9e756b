"""Where the lines of a stored file lie: from the number or the ordinal of a line to its bytes.

A file never changes, so what was counted once stays true. A map has a mark for about each MiB of a file, with
the lines before it. It grows as far as lines are asked for: the first look at a far line reads the file up to
there, about a second for a gigabyte, and later looks read a MiB. The process keeps the maps that were used
last.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, Final, cast

from fastapi import Depends, Request

from nightmill.api.blob_reads import end_of_line, read_bytes
from nightmill.blobs import Blobs
from nightmill.core.json_text import BOM

_BLOCK_BYTES: Final = 1 << 20
_MOST_MAPS: Final = 64


@dataclass(frozen=True, slots=True)
class LinePlace:
    """One line of a file.

    Args:
        number: from 1.
        ordinal: how many request lines are before it; blank lines do not count.
        offset: of its first byte.
        size_bytes: without the line break.
        is_request: whether it is not blank.
    """

    number: int
    ordinal: int
    offset: int
    size_bytes: int
    is_request: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """The beginning of a line, and what is before it."""

    offset: int
    lines: int
    requests: int


@dataclass(slots=True)
class _Map:
    """The marks of one file. The last one is as far as was counted."""

    marks: list[_Mark] = field(default_factory=lambda: [_Mark(0, 0, 0)])
    growing: asyncio.Lock = field(default_factory=asyncio.Lock)


class LineMaps:
    """The maps of the files that were looked at last."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._maps: OrderedDict[str, _Map] = OrderedDict()

    async def at_number(self, key: str, number: int) -> LinePlace | None:
        """The line with the number; None if the file has fewer lines. Raises FileNotFoundError."""
        if number < 1:
            return None
        known = self._map(key)
        while known.marks[-1].lines < number and await self._grow(key, known):
            pass
        for place in await self._block(key, known, _mark_before(known.marks, lines=number - 1)):
            if place.number == number:
                return place
        return None

    async def at_ordinal(self, key: str, ordinal: int) -> LinePlace | None:
        """The request line with the ordinal; None if the file has fewer. Raises FileNotFoundError."""
        if ordinal < 0:
            return None
        known = self._map(key)
        while known.marks[-1].requests <= ordinal and await self._grow(key, known):
            pass
        for place in await self._block(key, known, _mark_before(known.marks, requests=ordinal)):
            if place.ordinal == ordinal and place.is_request:
                return place
        return None

    async def number_at(self, key: str, offset: int, *, within_s: float) -> int | None:
        """The number of the line that begins at `offset`; None if it can't be counted in time, or if no line
        begins there. Raises FileNotFoundError."""
        known = self._map(key)
        try:
            async with asyncio.timeout(within_s):
                while known.marks[-1].offset < offset and await self._grow(key, known):
                    pass
        except TimeoutError:
            return None
        mark = _mark_before(known.marks, offset=offset)
        before = await read_bytes(self._blobs, key, mark.offset, offset - mark.offset)
        if before and before[-1:] != b"\n":
            return None
        return mark.lines + before.count(b"\n") + 1

    def _map(self, key: str) -> _Map:
        known = self._maps.get(key)
        if known is None:
            known = self._maps[key] = _Map()
            if len(self._maps) > _MOST_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        return known

    async def _grow(self, key: str, known: _Map) -> bool:
        """Counts one more block; False at the end of the file."""
        seen = known.marks[-1]
        async with known.growing:
            if known.marks[-1] is not seen:
                return True
            block = await self._read_block(key, seen.offset)
            if not block:
                return False
            lines, requests = await asyncio.to_thread(_counted, block, is_first=not seen.offset)
            known.marks.append(_Mark(seen.offset + len(block), seen.lines + lines, seen.requests + requests))
            return True

    async def _read_block(self, key: str, offset: int) -> bytes:
        """Whole lines from `offset`, about a MiB or one long line; empty at the end of the file."""
        block = await read_bytes(self._blobs, key, offset, _BLOCK_BYTES)
        if len(block) < _BLOCK_BYTES:
            return block
        whole = block.rfind(b"\n") + 1
        if whole:
            return block[:whole]
        size_bytes = await self._blobs.size_bytes(key) or 0
        end = await end_of_line(self._blobs, key, offset + len(block), size_bytes=size_bytes)
        return await read_bytes(self._blobs, key, offset, end + 1 - offset)

    async def _block(self, key: str, known: _Map, mark: _Mark) -> list[LinePlace]:
        """The lines from a mark to the next one."""
        at = known.marks.index(mark)
        if at + 1 == len(known.marks):
            return []
        block = await read_bytes(self._blobs, key, mark.offset, known.marks[at + 1].offset - mark.offset)
        return await asyncio.to_thread(_places, block, mark)


async def line_maps_of(request: Request) -> LineMaps:
    return cast("LineMaps", request.app.state.line_maps)


LineMapsOfApp = Annotated[LineMaps, Depends(line_maps_of)]
"""The type of the parameter `maps` of a route."""


def _mark_before(
    marks: list[_Mark], *, lines: int | None = None, requests: int | None = None, offset: int | None = None
) -> _Mark:
    """The last mark that has at most so much before it, and is not the end."""
    low, high = 0, max(0, len(marks) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        mark = marks[middle]
        is_before = (
            (lines is None or mark.lines <= lines)
            and (requests is None or mark.requests <= requests)
            and (offset is None or mark.offset <= offset)
        )
        low, high = (middle, high) if is_before else (low, middle - 1)
    return marks[low]


def _lines_of(block: bytes, *, is_first: bool) -> list[bytes]:
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if is_first and lines:
        lines[0] = lines[0].removeprefix(BOM)
    return lines


def _is_request(line: bytes) -> bool:
    return bool(line) and not line.isspace()


def _counted(block: bytes, *, is_first: bool) -> tuple[int, int]:
    """How many lines and request lines a block has."""
    lines = _lines_of(block, is_first=is_first)
    return len(lines), sum(map(_is_request, lines))


def _places(block: bytes, mark: _Mark) -> list[LinePlace]:
    places: list[LinePlace] = []
    offset, ordinal = mark.offset, mark.requests
    if not offset and block.startswith(BOM):
        offset += len(BOM)
    for number, line in enumerate(_lines_of(block, is_first=not mark.offset), mark.lines + 1):
        is_request = _is_request(line)
        places.append(LinePlace(number, ordinal, offset, len(line), is_request))
        offset += len(line) + 1
        ordinal += is_request
    return places
