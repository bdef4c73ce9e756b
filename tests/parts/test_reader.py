"""Of several answers to a line the first stands, in a folder and in a bucket."""

from nightmill.core.batch import Tally
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import PinnedPart, Segment, SegmentResult
from nightmill.ids import BatchId
from nightmill.parts import Parts, counted_parts, standing_records

SEGMENT = Segment(BatchId("batch_1"), 0, 0, 500)


async def written(parts: Parts, token: int, *ordinals: int) -> PinnedPart:
    writer = parts.open(SEGMENT, token)
    for ordinal in ordinals:
        text = b'{"token": %d}\n' % token
        writer.append(ordinal, OutputLine(text=text, is_error=False, usage=None))
    await writer.close()
    assert writer.pinned is not None
    return writer.pinned


async def tokens_by_ordinal(parts: Parts, pinned: list[PinnedPart]) -> dict[int, bytes]:
    return {record.ordinal: record.output.text[10:-2] async for record in standing_records(parts, pinned)}


def result_of(*pinned: PinnedPart, token: int, is_done: bool = False) -> SegmentResult:
    return SegmentResult(SEGMENT, token, pinned, Tally(), is_done)


async def test_the_first_of_several_answers_stands_within_a_part_and_across_parts(any_parts: Parts) -> None:
    first = await written(any_parts, 1, 5, 3, 5)
    second = await written(any_parts, 2, 3, 4)
    records = [record.ordinal async for record in standing_records(any_parts, [first, second])]
    assert records == [5, 3, 4]
    assert await tokens_by_ordinal(any_parts, [first, second]) == {5: b"1", 3: b"1", 4: b"2"}
    assert await tokens_by_ordinal(any_parts, [second, first]) == {5: b"1", 3: b"2", 4: b"2"}


async def test_a_done_segment_has_the_answers_of_its_pinned_parts_only(any_parts: Parts) -> None:
    await written(any_parts, 1, 0)
    pinned = await written(any_parts, 2, 0, 1)
    done = result_of(pinned, token=2, is_done=True)
    assert list(await counted_parts(any_parts, done, below=3)) == [pinned]


async def test_parts_of_holders_that_died_before_they_could_report_count_after_the_pinned_parts(
    any_parts: Parts,
) -> None:
    pinned = await written(any_parts, 1, 0)
    second = await written(any_parts, 2, 0, 1)
    counted = list(await counted_parts(any_parts, result_of(pinned, token=2), below=3))
    assert counted == [pinned, second]
    assert list(await counted_parts(any_parts, result_of(pinned, token=2), below=2)) == [pinned]


async def test_a_pinned_answer_stands_against_a_part_that_an_earlier_holder_wrote_late(
    any_parts: Parts,
) -> None:
    pinned = await written(any_parts, 2, 0)
    late = await written(any_parts, 1, 0, 1)
    counted = list(await counted_parts(any_parts, result_of(pinned, token=2), below=3))
    assert counted == [pinned, late]
    assert await tokens_by_ordinal(any_parts, counted) == {0: b"2", 1: b"1"}
