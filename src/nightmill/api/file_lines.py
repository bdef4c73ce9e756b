"""Pages of lines of a stored file, forward and backward from a place. About a MiB is read for a page."""

from dataclasses import dataclass
from typing import Final

from nightmill.api.blob_reads import end_of_line, read_bytes, start_of_line
from nightmill.api.ordered_lines import StoredLine
from nightmill.blobs import Blobs
from nightmill.core.file import File

_PAGE_BYTES: Final = 1 << 20
_NEWLINE: Final = b"\n"


@dataclass(frozen=True, slots=True)
class LinePage:
    """Consecutive lines. `end` is where the next page begins."""

    start: int
    end: int
    lines: list[StoredLine]


async def page_at(
    blobs: Blobs, file: File, offset: int, *, limit: int, most_bytes: int, stop: int | None = None
) -> LinePage:
    """The lines from the one that has the byte at `offset`. Raises FileNotFoundError.

    Args:
        most_bytes: of the text of a line.
        stop: where the page ends at the latest; the beginning of a line.
    """
    key, size_bytes = file.blob_key, file.size_bytes
    start = await _aligned(blobs, file, min(offset, size_bytes))
    stop = size_bytes if stop is None else stop
    block = await read_bytes(blobs, key, start, min(_PAGE_BYTES, stop - start))
    lines: list[StoredLine] = []
    at = 0
    while len(lines) < limit and at < len(block):
        end = block.find(_NEWLINE, at)
        if end < 0:
            if lines and start + len(block) < stop:
                break  # the next page begins with this line
            end = await end_of_line(blobs, key, start + len(block), size_bytes=stop) - start
        text = block[at : min(end, at + most_bytes)]
        if len(text) < min(end - at, most_bytes):
            text = await read_bytes(blobs, key, start + at, min(end - at, most_bytes))
        lines.append(StoredLine(start + at, end - at, text))
        at = end + 1
    return LinePage(start, min(start + at, size_bytes), lines)


async def page_before(blobs: Blobs, file: File, before: int, *, limit: int, most_bytes: int) -> LinePage:
    """The lines that end before the one that has the byte at `before`. Raises FileNotFoundError."""
    before = file.size_bytes if before >= file.size_bytes else await _aligned(blobs, file, before)
    from_offset = max(0, before - _PAGE_BYTES)
    block = await read_bytes(blobs, file.blob_key, from_offset, before - from_offset)
    place = len(block)
    for _ in range(limit):
        found = block.rfind(_NEWLINE, 0, max(0, place - 1))
        if found < 0:
            break
        place = found + 1
    else:
        return await page_at(
            blobs, file, from_offset + place, limit=limit, most_bytes=most_bytes, stop=before
        )
    if place == len(block) or not from_offset:
        place = 0
        from_offset = await start_of_line(blobs, file.blob_key, before) if from_offset else 0
    return await page_at(blobs, file, from_offset + place, limit=limit, most_bytes=most_bytes, stop=before)


async def _aligned(blobs: Blobs, file: File, offset: int) -> int:
    """The beginning of the line that has the byte at `offset`."""
    if not offset or await read_bytes(blobs, file.blob_key, offset - 1, 1) == _NEWLINE:
        return offset
    return await start_of_line(blobs, file.blob_key, offset)
