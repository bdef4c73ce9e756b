"""The guarantees of parts, in a folder and in a bucket."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from nightmill.core.batch import Tally, Usage
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import PinnedPart, Segment
from nightmill.errors import DamageError
from nightmill.ids import BatchId
from nightmill.parts import PartRecord, Parts, PartTail, PartWriter
from nightmill.parts.record import part_key

BATCH = BatchId("batch_1")


def segment_of(number: int = 0, *, batch_id: BatchId = BATCH) -> Segment:
    return Segment(batch_id, number, 0, 500)


def line(number: int, *, is_error: bool = False, usage: Usage | None = None) -> OutputLine:
    return OutputLine(text=b'{"n": %d}\n' % number, is_error=is_error, usage=usage)


async def records(parts: Parts, pinned: Sequence[PinnedPart]) -> list[PartRecord]:
    return [record async for some in parts.read(pinned) for record in some]


async def written(parts: Parts, count: int, *, token: int = 1, flushes: int = 1) -> PinnedPart:
    writer = parts.open(segment_of(), token)
    for number in range(count):
        writer.append(number, line(number))
        if flushes > 1 and (number + 1) % (count // flushes) == 0:
            await writer.flush()
    await writer.close()
    assert writer.pinned is not None
    return writer.pinned


async def test_what_was_flushed_comes_back_as_it_was(any_parts: Parts) -> None:
    settled = [
        PartRecord(7, line(7, usage=Usage(1, 2, 3, 4, 5))),
        PartRecord(0, line(0, is_error=True)),
        PartRecord(1 << 40, line(1, is_error=True, usage=Usage(10, 20, 30, 40, 50))),
        PartRecord(3, OutputLine(text=b"", is_error=False, usage=Usage())),
        PartRecord(4, OutputLine(text=b"x" * (3 << 20), is_error=False, usage=None)),
    ]
    writer = any_parts.open(segment_of(), 1)
    for record in settled:
        writer.append(record.ordinal, record.output)
    await writer.flush()
    assert writer.durable_tally == Tally(3, 2, Usage(11, 22, 33, 44, 55))
    assert writer.pinned is not None
    found = await records(any_parts, [writer.pinned])
    assert [(record.ordinal, record.output) for record in found] == [
        (record.ordinal, record.output) for record in settled
    ]


async def test_a_long_text_can_be_read_again_and_a_short_one_has_no_place(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    texts = [b"%d" % number * (200_000 if number % 2 else 9) for number in range(6)]
    for number, text in enumerate(texts):
        writer.append(number, OutputLine(text=text, is_error=False, usage=None))
        if number in (2, 3):
            await writer.flush()
    await writer.close()
    assert writer.pinned is not None
    found = await records(any_parts, [writer.pinned])
    assert [record.output.text for record in found] == texts
    assert [record.place is not None for record in found] == [False, True] * 3
    places = [record.place for record in found if record.place is not None]
    assert [await any_parts.text(place) for place in places] == texts[1::2]
    await any_parts.delete(BATCH)
    with pytest.raises(DamageError, match="batch_1"):
        await any_parts.text(places[0])


async def test_a_commit_takes_a_bounded_number_of_bytes_and_all_answers_become_durable(
    any_parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightmill.parts.writer._MOST_TAKEN_BYTES", 100_000)
    taken: list[int] = []
    real = PartWriter.take

    def take(writer: PartWriter) -> Sequence[bytes]:
        pieces = real(writer)
        taken.append(sum(map(len, pieces)))
        return pieces

    monkeypatch.setattr(PartWriter, "take", take)
    writer = any_parts.open(segment_of(), 1)
    for number, size_bytes in enumerate([50_000, 40_000, 50_000, 300_000, 10, 10]):
        writer.append(number, OutputLine(text=b"x" * size_bytes, is_error=False, usage=None))
    await writer.flush()
    assert any_parts.queued_bytes == writer.queued_bytes == 0
    assert [round(size_bytes, -4) for size_bytes in taken] == [90_000, 50_000, 300_000, 0]
    assert writer.pinned is not None
    assert [record.ordinal for record in await records(any_parts, [writer.pinned])] == list(range(6))
    assert writer.durable_tally == Tally(6, 0)
    await writer.close()


async def test_nothing_counts_before_the_commit(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    await writer.flush()
    assert writer.pinned is None
    assert await any_parts.batches() == []
    writer.append(0, line(0))
    writer.append(1, line(1))
    assert writer.durable_tally == Tally()
    assert writer.pinned is None
    await writer.flush()
    assert writer.durable_tally.answered == 2
    assert await any_parts.batches() == [BATCH]


async def test_answers_count_by_themselves_after_the_interval(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    async with asyncio.timeout(30):
        while writer.pending_count:  # noqa: ASYNC110 - `flush` would start the commit
            await asyncio.sleep(0.001)
    assert writer.durable_tally.answered == 1


async def test_a_take_over_pins_what_it_finds_and_later_bytes_are_never_read(any_parts: Parts) -> None:
    stalled_worker = any_parts.open(segment_of(), 1)
    stalled_worker.append(0, line(0))
    await stalled_worker.flush()
    found = await any_parts.find(segment_of(), below=2)
    assert found == [stalled_worker.pinned]

    stalled_worker.append(1, line(1))
    await stalled_worker.flush()
    successor = any_parts.open(segment_of(), 2)
    successor.append(1, line(100))
    await successor.flush()
    assert successor.pinned is not None

    third = await any_parts.find(segment_of(), below=3, pinned=found)
    assert third == [*found, successor.pinned]
    assert [record.output for record in await records(any_parts, third)] == [line(0), line(100)]


async def test_a_part_that_arrives_behind_a_newer_one_does_not_replace_its_answers(any_parts: Parts) -> None:
    # The holder of token 2 has found no part of token 1, and has sent the line again.
    newer = await written(any_parts, 1, token=2)
    late = await written(any_parts, 2, token=1)
    found = await any_parts.find(segment_of(), below=3)
    assert found == [newer, late]
    assert await any_parts.find(segment_of(), below=3, pinned=[late]) == [late, newer]


async def test_parts_of_the_own_and_of_newer_tokens_and_of_other_segments_are_not_found(
    any_parts: Parts,
) -> None:
    for token, number in ((2, 0), (3, 0), (1, 1), (1, 10)):
        writer = any_parts.open(segment_of(number), token)
        writer.append(0, line(0))
        await writer.close()
    assert await any_parts.find(segment_of(), below=2) == []
    assert [part.key for part in await any_parts.find(segment_of(), below=3)] == [f"{BATCH}/0.2.part"]


async def test_a_part_that_exists_under_the_token_is_left_as_it_is(any_parts: Parts) -> None:
    """A database restored from a backup gives out the same tokens again."""
    older = await written(any_parts, 3)
    newer = await written(any_parts, 2)
    assert older.key != newer.key
    assert len(await records(any_parts, [older])) == 3
    assert len(await records(any_parts, [newer])) == 2
    assert await any_parts.find(segment_of(), below=2) == [older, newer]


async def test_a_length_pinned_inside_a_record_is_damage(any_parts: Parts) -> None:
    part = await written(any_parts, 2)
    with pytest.raises(DamageError):
        await records(any_parts, [PinnedPart(part.key, part.length_bytes - 1)])


async def test_a_length_pinned_behind_the_end_is_damage(any_parts: Parts) -> None:
    part = await written(any_parts, 20, flushes=4)
    with pytest.raises(DamageError, match=part.key):
        await records(any_parts, [PinnedPart(part.key, part.length_bytes + 1)])


async def test_a_pinned_length_may_end_at_any_flush(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    pins: list[PinnedPart] = []
    for ordinal in range(30):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
        assert writer.pinned is not None
        pins.append(writer.pinned)
    for place, pin in enumerate(pins):
        seen = [record.ordinal for record in await records(any_parts, [pin])]
        assert seen == list(range(place + 1))
    assert await any_parts.find(segment_of(), below=2) == [pins[-1]]


async def test_what_lies_behind_a_pin_is_not_read_even_from_the_same_flush(any_parts: Parts) -> None:
    part = await written(any_parts, 2)
    assert await records(any_parts, [PinnedPart(part.key, part.length_bytes // 2)]) == [
        PartRecord(0, line(0))
    ]


async def test_one_token_has_one_writer(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    with pytest.raises(ValueError, match="already open"):
        any_parts.open(segment_of(), 1)
    await writer.close()
    await any_parts.open(segment_of(), 1).close()


async def test_a_closed_writer_takes_nothing(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="is closed"):
        writer.append(1, line(1))
    await closing
    await writer.close()
    assert writer.durable_tally.answered == 1


async def test_a_close_that_is_cancelled_still_makes_durable_what_was_appended(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await writer.flush()
    assert writer.durable_tally.answered == 1


async def test_closing_in_the_middle_of_commits_drops_nothing(any_parts: Parts) -> None:
    async def answer(number: int) -> PinnedPart:
        writer = any_parts.open(segment_of(number), 1)
        chance = random.Random(number)
        for ordinal in range(200):
            writer.append(ordinal, line(ordinal))
            if chance.random() < 0.05:
                await asyncio.sleep(chance.random() * 0.004)
        await writer.close()
        assert writer.durable_tally.answered == 200
        assert writer.pinned is not None
        return writer.pinned

    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(answer(number)) for number in range(10)]
    for writer in writers:
        seen = [record.ordinal for record in await records(any_parts, [writer.result()])]
        assert seen == list(range(200))


async def test_token_counts_that_do_not_fit_are_cut_to_the_largest_that_does(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    writer.append(0, line(0, usage=Usage(1 << 40, -1, 2, 3, 4)))
    await writer.close()
    assert writer.pinned is not None
    [record] = await records(any_parts, [writer.pinned])
    assert record.output.usage == Usage((1 << 32) - 1, 0, 2, 3, 4)


async def test_deleting_a_batch_keeps_the_parts_of_others(any_parts: Parts) -> None:
    other = BatchId("batch_12")
    for batch_id in (BATCH, other):
        writer = any_parts.open(segment_of(batch_id=batch_id), 1)
        writer.append(0, line(0))
        await writer.close()
    assert sorted(await any_parts.batches()) == [BATCH, other]
    await any_parts.delete(BATCH)
    await any_parts.delete(BATCH)
    assert await any_parts.batches() == [other]
    assert await any_parts.find(segment_of(), below=2) == []
    assert len(await any_parts.find(segment_of(batch_id=other), below=2)) == 1


async def test_a_part_that_is_still_written_is_read_behind_what_was_read_before(any_parts: Parts) -> None:
    writer = any_parts.open(segment_of(), 1)
    start = PartTail(part_key(segment_of(), 1))
    found, tail = await any_parts.tail(start)
    assert (len(found), tail) == (0, start)
    read: list[PartRecord] = []
    for number in range(6):
        writer.append(number, OutputLine(b"%d" % number * (400 << 10), is_error=False, usage=None))
        if number % 2:
            await writer.flush()
            while True:
                found, tail = await any_parts.tail(tail)
                if not found:
                    break
                read += found
            assert [record.ordinal for record in read] == list(range(number + 1))
    await writer.close()
    assert writer.pinned is not None
    assert tail.length_bytes == writer.pinned.length_bytes
    whole = await records(any_parts, [writer.pinned])
    assert [record.output for record in read] == [record.output for record in whole]
