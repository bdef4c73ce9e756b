"""Finds one request line: in the input file, in the line index, and in the files of a batch that has ended.

Files are read as streams. Lines of the input are compared in a thread, so that no other request is delayed.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.api.stored_lines import blob_lines
from nightmill.core.batch import Batch
from nightmill.core.json_text import BOM, string
from nightmill.core.request_line import slice_line
from nightmill.core.segment import INDEX_RECORD_BYTES, unpack_lines
from nightmill.errors import ConflictError, UnavailableError
from nightmill.ids import FileId, output_line_id

_SEARCH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A request line of an input file.

    Args:
        number: of the physical line, from 1.
        ordinal: of the request line, from 0; blank lines do not count.
        custom_id: None where it can't be read.
    """

    number: int
    ordinal: int
    custom_id: str | None


async def find_line(
    context: ApiContext, batch: Batch, *, custom_id: str | None, number: int | None
) -> FoundLine | None:
    """The line with the custom_id, or at the number; None if there is none.

    Raises:
        ConflictError: the input file is deleted.
        UnavailableError: the file is so long that the search was given up.
    """
    numbers = ordinals = 0
    try:
        async with asyncio.timeout(_SEARCH_S):
            async for lines in blob_lines(context.blobs, batch.input_blob_key):
                if not numbers:
                    lines[0] = lines[0].removeprefix(BOM)
                if custom_id is not None:
                    found = await asyncio.to_thread(_with_custom_id, lines, custom_id, numbers, ordinals)
                else:
                    found = _at_number(lines, number or 0, numbers, ordinals)
                if found is not None:
                    return found
                numbers += len(lines)
                ordinals += _request_count(lines)
    except FileNotFoundError:
        raise ConflictError(f"The input file of batch '{batch.id}' is deleted.") from None
    except TimeoutError:
        message = f"the input file of {batch.id} was searched for {_SEARCH_S:g} s without an end; try again"
        raise UnavailableError(message) from None
    return None


def _is_request(line: bytes) -> bool:
    return bool(line) and not line.isspace()


def _request_count(lines: list[bytes]) -> int:
    return sum(map(_is_request, lines))


def _with_custom_id(lines: list[bytes], custom_id: str, number: int, ordinal: int) -> FoundLine | None:
    for line in lines:
        number += 1
        if not _is_request(line):
            continue
        if _custom_id(line) == custom_id:
            return FoundLine(number, ordinal, custom_id)
        ordinal += 1
    return None


def _at_number(lines: list[bytes], wanted: int, number: int, ordinal: int) -> FoundLine | None:
    place = wanted - number - 1
    if place >= len(lines) or not _is_request(lines[place]):
        return None
    return FoundLine(wanted, ordinal + _request_count(lines[:place]), _custom_id(lines[place]))


def _custom_id(line: bytes) -> str | None:
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


async def written_line(context: ApiContext, batch: Batch, file_id: FileId, ordinal: int) -> bytes | None:
    """The line of an output or error file for the ordinal; None without one."""
    file = await context.store.files.get(batch.project_id, file_id)
    if file is None:
        return None
    start = b'{"id": "%b"' % output_line_id(batch.id, ordinal).encode()
    try:
        async for lines in blob_lines(context.blobs, file.blob_key):
            for line in lines:
                if line.startswith(start):
                    return line
    except FileNotFoundError:  # deleted while it was read
        return None
    return None
