"""The recorded attempts of one line, found without reading those of all lines.

Records lie in blobs by segment. Segments are runs of ordinals, one behind the other, so the segment of a line
is found by bisection over the first record of each.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from nightmill.api.blob_reads import end_of_line, read_bytes
from nightmill.blobs import Blobs
from nightmill.core.batch import Batch
from nightmill.roles.attempt_log import attempts_prefix

_LONGEST_HEAD_BYTES: Final = 64 << 10


class _Record(msgspec.Struct, gc=False):
    ordinal: int


_record = msgspec.json.Decoder(_Record).decode


async def attempts_of_line(blobs: Blobs, batch: Batch, ordinal: int) -> list[dict[str, Any]]:
    """The records of the line in the order of their start, each with `lease`: attempts are counted anew
    when another worker leases the segment."""
    keys = sorted([key async for key in blobs.keys_under(attempts_prefix(batch.id))])
    by_segment: dict[int, list[str]] = {}
    for key in keys:
        by_segment.setdefault(_numbers(key)[0], []).append(key)
    found: list[dict[str, Any]] = []
    for number in await _near(blobs, by_segment, ordinal):
        for key in by_segment[number]:
            found += await _of_line(blobs, key, ordinal)
    return sorted(found, key=lambda record: record["started_at"])


async def _near(blobs: Blobs, by_segment: dict[int, list[str]], ordinal: int) -> Sequence[int]:
    """The segments that may have records of the line: the last whose first record is not behind the line,
    and the next one, whose first record need not be that of its first line."""
    numbers = sorted(by_segment)
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high + 1) // 2
        first = await _first_ordinal(blobs, by_segment[numbers[middle]][0])
        low, high = (middle, high) if first <= ordinal else (low, middle - 1)
    return numbers[low : low + 2]


async def _first_ordinal(blobs: Blobs, key: str) -> int:
    try:
        end = await end_of_line(blobs, key, 0, size_bytes=_LONGEST_HEAD_BYTES)
        return _record(await read_bytes(blobs, key, 0, end)).ordinal
    except (FileNotFoundError, msgspec.DecodeError):  # deleted meanwhile
        return -1


async def _of_line(blobs: Blobs, key: str, ordinal: int) -> list[dict[str, Any]]:
    size_bytes = await blobs.size_bytes(key)
    if not size_bytes:  # deleted meanwhile
        return []
    mark = b'"ordinal":%d,' % ordinal
    text = await read_bytes(blobs, key, 0, size_bytes)
    found = [cast("dict[str, Any]", msgspec.json.decode(it)) for it in text.splitlines() if mark in it]
    lease = _numbers(key)[1]
    return [{"lease": lease, **record} for record in found if record["ordinal"] == ordinal]


def _numbers(key: str) -> tuple[int, int]:
    """Segment and token of a blob, from its name."""
    segment, token, _ = key.rpartition("/")[2].split(".")
    return int(segment), int(token)
