from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.segment import INDEX_RECORD_BYTES, IndexedLine, cut_segments, pack_line, unpack_lines
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


@given(st.integers(0, 5_000), st.integers(1, 700))
def test_segments_cover_every_line_exactly_once(total: int, lines_per_segment: int):
    segments = list(cut_segments(BatchId("batch_1"), total=total, lines_per_segment=lines_per_segment))
    covered = [place for segment in segments for place in range(segment.first, segment.first + segment.count)]
    assert covered == list(range(total))
    assert [segment.number for segment in segments] == list(range(len(segments)))
    assert all(1 <= segment.count <= lines_per_segment for segment in segments)
