"""Lines of stored files are found by their number, their ordinal, and the number in their text."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.api import line_map, ordered_lines
from nightmill.api.line_map import LineMaps
from nightmill.api.ordered_lines import OrderedLines
from nightmill.blobs import FolderBlobs

KEY = "files/file-1"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Files of some hundred bytes have several blocks."""
    monkeypatch.setattr(line_map, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(ordered_lines, "_NEAR_BYTES", 32)


class CountedBlobs(FolderBlobs):
    """One blob in memory, that counts the bytes that were read."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.read_bytes_in_all = 0

    async def size_bytes(self, key: str) -> int:  # noqa: ARG002 - there is one blob
        return len(self.text)

    async def read(self, key: str, start: int, length_bytes: int) -> bytes:  # noqa: ARG002 - as above
        self.read_bytes_in_all += length_bytes
        return self.text[start : start + length_bytes]


LINE = st.sampled_from([b"", b" ", b"\t\r", b"{}", b'{"a": 1}', b"x" * 90, b"\xff\xfe"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=30), st.booleans(), st.booleans(), st.randoms())
def test_every_line_is_found_by_number_and_ordinal(lines, has_end, has_mark, random):
    text = b"\n".join(lines) + (b"\n" if has_end and lines else b"")
    text = b"\xef\xbb\xbf" + text if has_mark and text else text
    expected = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not expected[-1]:
        expected.pop()
    requests = [at for at, line in enumerate(expected) if line and not line.isspace()]

    async def check() -> None:
        blobs = CountedBlobs(text)
        maps = LineMaps(blobs)
        for number in random.sample(range(1, len(expected) + 1), len(expected)):
            place = await maps.at_number(KEY, number)
            assert place is not None
            found = text[place.offset : place.offset + place.size_bytes]
            assert (place.number, found) == (number, expected[number - 1])
            start = 0 if number == 1 else place.offset
            assert await maps.number_at(KEY, start, within_s=60) == number
        assert await maps.at_number(KEY, len(expected) + 1) is None
        for ordinal, at in enumerate(requests):
            place = await maps.at_ordinal(KEY, ordinal)
            assert place is not None
            assert (place.number, place.ordinal, place.is_request) == (at + 1, ordinal, True)
        assert await maps.at_ordinal(KEY, len(requests)) is None

    asyncio.run(check())


def test_a_second_look_at_a_far_line_reads_a_block_only():
    async def check() -> None:
        blobs = CountedBlobs(b"{}\n" * 10_000)
        maps = LineMaps(blobs)
        await maps.at_number(KEY, 9_000)
        blobs.read_bytes_in_all = 0
        place = await maps.at_number(KEY, 8_999)
        assert place is not None
        assert place.offset == 3 * 8_998
        assert blobs.read_bytes_in_all < 200

    asyncio.run(check())


def rank(line: bytes) -> int:
    return int(line[6:14])


def row(number: int, length: int) -> bytes:
    return b'{"n": %08d, "t": "%b"}' % (number, b"x" * length)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 99)), st.sampled_from([0, 7, 300]), st.booleans())
def test_a_line_is_found_by_the_number_in_its_text(numbers, length, has_end):
    ordered = sorted(numbers)
    rows = [row(number, length if number % 3 else 0) for number in ordered]
    text = b"\n".join(rows) + (b"\n" if has_end and rows else b"")

    async def check() -> None:
        blobs = CountedBlobs(text)
        lines = OrderedLines(blobs, KEY, len(text), rank=rank)
        for number in range(100):
            found = await lines.find(number, most_bytes=1_000)
            if number in numbers:
                assert found is not None
                assert found.text == rows[ordered.index(number)]
                assert text[found.offset :].startswith(found.text)
            else:
                assert found is None
            before = max((it for it in ordered if it < number), default=None)
            after = min((it for it in ordered if it > number), default=None)
            assert await lines.around(number) == (before, after)

    asyncio.run(check())


def test_a_long_file_is_not_read_to_find_a_line():
    async def check() -> None:
        text = b"\n".join(row(number, 100) for number in range(20_000))
        blobs = CountedBlobs(text)
        found = await OrderedLines(blobs, KEY, len(text), rank=rank).find(15_000, most_bytes=9)
        assert found is not None
        assert (found.text, found.size_bytes) == (row(15_000, 100)[:9], len(row(15_000, 100)))
        assert blobs.read_bytes_in_all < len(text) / 4

    asyncio.run(check())
