"""Finds one request line: in the input file, in the line index, and in the files of a batch that has ended.

A line is found by its number or ordinal with the map of its file, by its custom_id in a stream of the whole
file. Lines are compared in a thread, so that no other request is delayed.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from nightmill.api.blob_reads import read_bytes
from nightmill.api.context import ApiContext
from nightmill.api.line_map import LineMaps, LinePlace
from nightmill.api.ordered_lines import OrderedLines, StoredLine
from nightmill.api.stored_lines import blob_lines
from nightmill.core.batch import Batch
from nightmill.core.json_text import BOM, string
from nightmill.core.request_line import slice_line
from nightmill.core.result_filter import ordinal_of
from nightmill.core.segment import INDEX_RECORD_BYTES, unpack_lines
from nightmill.errors import ConflictError, UnavailableError
from nightmill.ids import FileId

_SEARCH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LineName:
    """What a client names a line by: exactly one of custom_id, number (from 1) and ordinal (from 0)."""

    custom_id: str | None = None
    number: int | None = None
    ordinal: int | None = None


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A request line of an input file. `custom_id` is None where it can't be read."""

    place: LinePlace
    custom_id: str | None

    @property
    def number(self) -> int:
        """Of the physical line, from 1."""
        return self.place.number

    @property
    def ordinal(self) -> int:
        """Of the request line, from 0; blank lines do not count."""
        return self.place.ordinal


async def find_line(context: ApiContext, maps: LineMaps, batch: Batch, named: LineName) -> FoundLine | None:
    """The line with this name; None if there is none.

    Raises:
        ConflictError: the input file is deleted.
        UnavailableError: the file is so long that the search was given up.
    """
    key = batch.input_blob_key
    try:
        async with asyncio.timeout(_SEARCH_S):
            number = named.number
            if named.custom_id is not None:
                number = await _number_of(context, key, named.custom_id)
            if named.ordinal is not None:
                place = await maps.at_ordinal(key, named.ordinal)
            else:
                place = None if number is None else await maps.at_number(key, number)
            if place is None or not place.is_request:
                return None
            text = await read_bytes(context.blobs, key, place.offset, place.size_bytes)
            return FoundLine(place, custom_id_of(text))
    except FileNotFoundError:
        raise ConflictError(f"The input file of batch '{batch.id}' is deleted.") from None
    except TimeoutError:
        message = f"the input file of {batch.id} was searched for {_SEARCH_S:g} s without an end; try again"
        raise UnavailableError(message) from None


async def _number_of(context: ApiContext, key: str, custom_id: str) -> int | None:
    """The number of the first line with the custom_id."""
    numbers = 0
    async for lines in blob_lines(context.blobs, key):
        if not numbers:
            lines[0] = lines[0].removeprefix(BOM)
        place = await asyncio.to_thread(_place_in, lines, custom_id)
        if place is not None:
            return numbers + place + 1
        numbers += len(lines)
    return None


def _place_in(lines: list[bytes], custom_id: str) -> int | None:
    return next((at for at, line in enumerate(lines) if custom_id_of(line) == custom_id), None)


def custom_id_of(line: bytes) -> str | None:
    """None where the line has none that can be read."""
    try:
        return string(slice_line(line).custom_id_json)
    except (ValueError, TypeError):
        return None


async def index_place(context: ApiContext, batch: Batch, ordinal: int) -> int | None:
    """The place of a line in the line index, which has the lines of the input in order; None for a line that
    was put aside as invalid."""
    key = await context.store.line_reports.index_blob_key(batch.id)
    if key is None:
        return None
    low, high = max(0, ordinal - batch.invalid), min(ordinal, batch.total - batch.invalid - 1)
    while low <= high:
        middle = (low + high) // 2
        record = await context.blobs.read(key, middle * INDEX_RECORD_BYTES, INDEX_RECORD_BYTES)
        found = next(unpack_lines(record)).ordinal
        if found == ordinal:
            return middle
        low, high = (middle + 1, high) if found < ordinal else (low, middle - 1)
    return None


async def written_line(
    context: ApiContext, batch: Batch, file_id: FileId, ordinal: int, *, most_bytes: int
) -> StoredLine | None:
    """The line of an output or error file for the ordinal; None without one.

    Args:
        most_bytes: of its text.
    """
    lines = await ordered_lines(context, batch, file_id)
    try:
        return None if lines is None else await lines.find(ordinal, most_bytes=most_bytes)
    except FileNotFoundError:  # deleted while it was read
        return None


async def ordered_lines(context: ApiContext, batch: Batch, file_id: FileId) -> OrderedLines | None:
    """The lines of an output or error file by their ordinals; None if the file is deleted."""
    file = await context.store.files.get(batch.project_id, file_id)
    if file is None:
        return None
    return OrderedLines(context.blobs, file.blob_key, file.size_bytes, rank=ordinal_of)
