"""Reads lines of a blob at an offset, without a stream of the whole blob, and puts their text into JSON.

Every read is bounded: a line that is longer than what may be read counts as ending there.
"""

import codecs
from typing import Any, Final

from nightmill.blobs import Blobs

MOST_LINE_BYTES: Final = 128 << 20
"""A line is looked at so far. The default limit of request lines is 100 MiB."""
_FIRST_READ_BYTES: Final = 16 << 10
_NEWLINE: Final = b"\n"


async def read_bytes(blobs: Blobs, key: str, start: int, length_bytes: int) -> bytes:
    """The bytes from `start`, fewer only at the end of the blob. Raises FileNotFoundError."""
    found = b""
    while len(found) < length_bytes:
        chunk = await blobs.read(key, start + len(found), length_bytes - len(found))
        if not chunk:
            break
        found = found + chunk if found else chunk
    return found


async def end_of_line(blobs: Blobs, key: str, start: int, *, size_bytes: int) -> int:
    """The place of the line break at or after `start`; the end of the blob for the last line."""
    at, length_bytes = start, _FIRST_READ_BYTES
    stop = min(size_bytes, start + MOST_LINE_BYTES)
    while at < stop:
        chunk = await read_bytes(blobs, key, at, min(length_bytes, stop - at))
        if not chunk:
            break
        place = chunk.find(_NEWLINE)
        if place >= 0:
            return at + place
        at += len(chunk)
        length_bytes *= 2
    return stop


async def start_of_line(blobs: Blobs, key: str, place: int) -> int:
    """The beginning of the line that has the byte before `place`, its line break aside: of a place behind a
    line break, the line before it."""
    stop, length_bytes = max(0, place - 1), _FIRST_READ_BYTES
    least = max(0, place - MOST_LINE_BYTES)
    while stop > least:
        start = max(least, stop - length_bytes)
        chunk = await read_bytes(blobs, key, start, stop - start)
        found = chunk.rfind(_NEWLINE)
        if found >= 0:
            return start + found + 1
        stop = start
        length_bytes *= 2
    return least


def text_on_wire(text: bytes, *, size_bytes: int, most_bytes: int) -> dict[str, Any]:
    """`text` (bytes that are not UTF-8 are replaced), `size_bytes` of the whole, and whether it is cut.

    Args:
        text: the whole, or its beginning.
    """
    kept = text[:most_bytes]
    is_cut = len(kept) < size_bytes
    # A letter that the cut divides is left out, not replaced.
    decoded = codecs.getincrementaldecoder("utf-8")("replace").decode(kept, not is_cut)
    return {"text": decoded, "size_bytes": size_bytes, "is_cut": is_cut}
