from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.segment import INDEX_RECORD_BYTES, IndexedLine, SegmentCutter, pack_line, unpack_lines
from nightmill.ids import BatchId

LINES = st.builds(
    IndexedLine,
    offset=st.integers(0, 2**64 - 1),
    length_bytes=st.integers(0, 2**32 - 1),
    ordinal=st.integers(0, 2**32 - 1),
    sort_key=st.integers(0, 2**64 - 1),
)


@given(st.lists(LINES))
def test_the_line_index_comes_back_as_it_was_written(lines: list[IndexedLine]):
    records = b"".join(
        pack_line(line.offset, line.length_bytes, line.ordinal, line.sort_key) for line in lines
    )
    assert len(records) == len(lines) * INDEX_RECORD_BYTES
    assert list(unpack_lines(records)) == lines


def cut(lengths: list[int], *, most_lines: int, most_bytes: int, chunk: int = 7) -> list[list[range]]:
    """The lines of each segment, as ranges of the input; the index is given in chunks."""
    cutter = SegmentCutter(BatchId("batch_1"), most_lines=most_lines, most_bytes=most_bytes)
    ends = list(accumulate(lengths))
    lines = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    records = [pack_line(line.start, len(line), ordinal) for ordinal, line in enumerate(lines)]
    for start in range(0, len(records), chunk):
        cutter.take(b"".join(records[start : start + chunk]))
    segments = cutter.segments()
    assert [segment.number for segment in segments] == list(range(len(segments)))
    return [lines[segment.first : segment.first + segment.count] for segment in segments]


@given(st.lists(st.integers(1, 50)), st.integers(1, 9), st.integers(1, 99), st.integers(1, 9))
def test_segments_cover_every_line_once_within_both_limits(
    lengths: list[int], most_lines: int, most_bytes: int, chunk: int
):
    segments = cut(lengths, most_lines=most_lines, most_bytes=most_bytes, chunk=chunk)
    assert [len(line) for segment in segments for line in segment] == lengths
    for segment in segments:
        assert 1 <= len(segment) <= most_lines
        assert len(segment) == 1 or segment[-1].stop - segment[0].start <= most_bytes
    for segment, following in pairwise(segments):
        is_full = len(segment) == most_lines
        assert is_full or following[0].stop - segment[0].start > most_bytes, "no segment is cut too early"


def test_short_lines_are_cut_by_their_number():
    segments = cut([100] * 1_200, most_lines=500, most_bytes=50_000)
    assert [len(segment) for segment in segments] == [500, 500, 200]


def test_a_line_longer_than_a_segment_is_a_segment_of_its_own():
    assert [len(segment) for segment in cut([10, 99, 10, 10], most_lines=500, most_bytes=20)] == [1, 1, 2]


@pytest.mark.parametrize("split", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("canary", [0, 1, 4, 7, 12, 13])
def test_canary_lines_are_segments_of_their_own_however_the_records_arrive(split: int, canary: int) -> None:
    records = [pack_line(number * 10, 9, number) for number in range(12)]
    cutter = SegmentCutter(BatchId("batch_1"), most_lines=5, most_bytes=1 << 20, canary_lines=canary)
    for first in range(0, 12, split):
        cutter.take(b"".join(records[first : first + split]))
    segments = cutter.segments()
    assert [(it.number, it.first) for it in segments] == [
        (number, sum(it.count for it in segments[:number])) for number in range(len(segments))
    ]
    assert sum(it.count for it in segments) == 12
    held = cutter.canary_segments
    assert held == (None if canary in (0, 12, 13) else -(-canary // 5))
    assert held is None or sum(it.count for it in segments[:held]) == canary
