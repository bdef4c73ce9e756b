from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.slice import cut_slices
from nightmill.ids import BatchId


@given(st.integers(0, 500), st.integers(1, 70))
def test_slices_cover_every_segment_exactly_once(segments: int, segments_per_slice: int):
    slices = list(cut_slices(BatchId("b"), segments=segments, segments_per_slice=segments_per_slice))
    covered = [number for it in slices for number in range(it.first, it.first + it.count)]
    assert covered == list(range(segments))
    assert [it.number for it in slices] == list(range(len(slices)))
    assert all(1 <= it.count <= segments_per_slice for it in slices)
