"""The format of a part: the key that names the part, and the records inside. The only I/O reads an open file.

A record is a fixed header and the finished output line, little-endian:

    CRC-32 of all that follows | magic | kind | ordinal | five token counts | length | the line

`kind` says whether the line belongs to the error file and whether the line has a usage.
"""

import re
import struct
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import BinaryIO
from zlib import crc32

import msgspec
from msgspec.structs import astuple

from nightmill.core.batch import Tally, Usage
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import Segment
from nightmill.ids import BatchId

_MAGIC = b"NMP1"
_CRC = struct.Struct("<I")
_CONTENT = struct.Struct("<4sIQIIIIII")
_HEADER = struct.Struct("<I4sIQIIIIII")
HEADER_BYTES = _HEADER.size
_IS_ERROR, _HAS_USAGE = 1, 2
_BLOCK_BYTES = 256 << 10
LONG_TEXT_BYTES = 64 << 10
_MAX_TOKENS = (1 << 32) - 1
_NAME = re.compile(r"([0-9]+)\.([0-9]+)(?:-([0-9]+))?\.part", re.ASCII)


class TextPlace(msgspec.Struct, frozen=True, gc=False):
    """Where the text of a record lies: a reader that has no memory for a long text reads it again later.

    `key` is that of a file or of one object of a part.
    """

    key: str
    offset: int
    length_bytes: int


class PartTail(msgspec.Struct, frozen=True, gc=False):
    """How far a part that is still written was read: bytes, and in a bucket the objects that hold them."""

    key: str
    length_bytes: int = 0
    object_count: int = 0


class PartRecord(msgspec.Struct, frozen=True, gc=False):
    """The answer to one request line, which `ordinal` names. Only a long text has a `place`."""

    ordinal: int
    output: OutputLine
    place: TextPlace | None = None

    @property
    def tally(self) -> Tally:
        is_error = self.output.is_error
        return Tally(int(not is_error), int(is_error), self.output.usage or Usage())


@dataclass(frozen=True, slots=True)
class PartName:
    """The last step of a part's key.

    `copy` counts the parts under one token: a database restored from a backup gives out old tokens again,
    and a part that exists under the token is left as it is.
    """

    number: int
    token: int
    copy: int

    @staticmethod
    def of(name: str) -> "PartName | None":
        match = _NAME.fullmatch(name)
        return PartName(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None

    @property
    def place(self) -> tuple[int, int, int]:
        """The place among the parts of a batch that are not pinned, in the order in which they are read."""
        return self.number, -self.token, self.copy

    def key(self, batch_id: BatchId) -> str:
        copy = f"-{self.copy}" if self.copy else ""
        return f"{batch_id}/{self.number}.{self.token}{copy}.part"


def part_key(segment: Segment, token: int, copy: int = 0) -> str:
    return PartName(segment.number, token, copy).key(segment.batch_id)


def pack_record(ordinal: int, output: OutputLine) -> tuple[bytes, bytes]:
    """The record in two pieces, which saves one copy of the line, and all copies of a long line.

    Raises struct.error when a token count does not fit; see `bounded`.
    """
    text, usage = output.text, output.usage
    if usage is None:
        content = _CONTENT.pack(_MAGIC, output.is_error, ordinal, 0, 0, 0, 0, 0, len(text))
    else:
        content = _CONTENT.pack(
            _MAGIC,
            output.is_error | _HAS_USAGE,
            ordinal,
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            usage.total_tokens,
            len(text),
        )
    if len(text) >= LONG_TEXT_BYTES:
        return _CRC.pack(crc32(text, crc32(content))) + content, text
    record = content + text
    return _CRC.pack(crc32(record)), record


def pack_records(rows: Iterable[tuple[int, OutputLine]]) -> tuple[list[bytes], Tally]:
    """The pieces of many records in order, and the sum of what the lines add to the tally.

    All records are packed in one loop: packing each line as its answer arrives costs twice as much.
    """
    pieces: list[bytes] = []
    answered = failed = 0
    input_tokens = cached = output_tokens = reasoning = total = 0
    for ordinal, output in rows:
        try:
            pieces += pack_record(ordinal, output)
        except struct.error:
            output = bounded(output)  # noqa: PLW2901 - the bounded line replaces the line
            pieces += pack_record(ordinal, output)
        answered += 1
        failed += output.is_error
        usage = output.usage
        if usage is not None:
            input_tokens += usage.input_tokens
            cached += usage.cached_tokens
            output_tokens += usage.output_tokens
            reasoning += usage.reasoning_tokens
            total += usage.total_tokens
    usage = Usage(input_tokens, cached, output_tokens, reasoning, total)
    return pieces, Tally(answered - failed, failed, usage)


def bounded(output: OutputLine) -> OutputLine:
    """The line with each token count cut to what the header holds. An upstream may report any number."""
    if output.usage is None:
        return output
    counts = (min(max(count, 0), _MAX_TOKENS) for count in astuple(output.usage))
    return OutputLine(text=output.text, is_error=output.is_error, usage=Usage(*counts))


def read_records(file: BinaryIO, length_bytes: int, *, key: str = "") -> Generator[tuple[int, PartRecord]]:
    """Whole records, each with the offset of its end, up to the first torn, foreign or damaged record.

    Args:
        key: of the file, for the places of long texts.
    """
    end = 0  # offset in the file of the end of the last good record; `at` is the same place in the block
    block, at = b"", 0
    while length_bytes - end >= _HEADER.size:
        if len(block) - at < _HEADER.size:
            block, at = _refilled(file, block, at, _HEADER.size), 0
            if len(block) < _HEADER.size:
                return
        crc, magic, kind, ordinal, taken, cached, given, reasoning, total, text_bytes = _HEADER.unpack_from(
            block, at
        )
        size_bytes = _HEADER.size + text_bytes
        if magic != _MAGIC or size_bytes > length_bytes - end:
            return
        if len(block) - at < size_bytes:
            block, at = _refilled(file, block, at, size_bytes), 0
            if len(block) < size_bytes:
                return
        text = block[at + _HEADER.size : at + size_bytes]
        if crc32(text, crc32(block[at + _CRC.size : at + _HEADER.size])) != crc:
            return
        end += size_bytes
        at += size_bytes
        usage = Usage(taken, cached, given, reasoning, total) if kind & _HAS_USAGE else None
        is_long = text_bytes >= LONG_TEXT_BYTES
        place = TextPlace(key, end - text_bytes, text_bytes) if is_long else None
        yield end, PartRecord(ordinal, OutputLine(text, bool(kind & _IS_ERROR), usage), place)


def whole_bytes(file: BinaryIO, length_bytes: int) -> int:
    """The length of the whole records at the start of the file."""
    end = 0
    for end, _ in read_records(file, length_bytes):  # noqa: B007 - only the last end is used
        pass
    return end


def _refilled(file: BinaryIO, block: bytes, at: int, needed_bytes: int) -> bytes:
    """The rest of the block and enough bytes of the file behind the block, unless the file ends."""
    rest = block[at:]
    return rest + file.read(max(_BLOCK_BYTES, needed_bytes - len(rest)))
