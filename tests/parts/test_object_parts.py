"""ObjectParts: nothing counts before the store has it, and putting again changes nothing."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from nightmill.blobs.bucket import Bucket
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import PinnedPart, Segment
from nightmill.errors import DamageError, LeaseLost, UnavailableError
from nightmill.ids import BatchId
from nightmill.parts.objects import ObjectParts
from tests.parts.conftest import object_parts
from tests.s3_server import Order, S3Server

BATCH = BatchId("batch_1")


def segment_of(number: int = 0) -> Segment:
    return Segment(BATCH, number, 0, 500)


def line(number: int) -> OutputLine:
    return OutputLine(text=b'{"n": %d}\n' % number, is_error=False, usage=None)


async def ordinals(parts: ObjectParts, pinned: Sequence[PinnedPart]) -> list[int]:
    return [record.ordinal async for records in parts.read(pinned) for record in records]


def puts(s3: S3Server, bucket_name: str) -> list[str]:
    seen = s3.seen(bucket_name)
    return [request.rpartition("/parts/")[2] for request in seen if request.startswith("PUT")]


async def has_stalled(parts: ObjectParts) -> None:
    async with asyncio.timeout(30):
        while parts.stalled is None:
            await parts._next_commit()


async def test_every_flush_is_one_more_object(s3_parts: ObjectParts, s3: S3Server, bucket_name: str) -> None:
    s3.order()
    writer = s3_parts.open(segment_of(3), 7)
    for ordinal in range(3):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
    assert puts(s3, bucket_name) == [f"{BATCH}/3.7.part/{number}" for number in range(3)]


async def test_a_thousand_answers_of_one_interval_are_one_object(
    bucket: Bucket, s3: S3Server, bucket_name: str
) -> None:
    parts = object_parts(bucket, interval_s=60)
    s3.order()
    writer = parts.open(segment_of(), 1)
    for ordinal in range(1_000):
        writer.append(ordinal, line(ordinal))
    await writer.close()
    assert len(puts(s3, bucket_name)) == 1
    await parts.close()


async def test_a_full_piece_does_not_wait_for_the_interval(bucket: Bucket) -> None:
    parts = object_parts(bucket, interval_s=60)
    writer = parts.open(segment_of(), 1)
    writer.append(0, OutputLine(text=b"x" * (1 << 16), is_error=False, usage=None))
    async with asyncio.timeout(30):
        while writer.pending_count:
            await parts._commit_ended.wait()
    await parts.close()


async def test_a_flush_does_not_hurry_other_writers(bucket: Bucket, s3: S3Server, bucket_name: str) -> None:
    parts = object_parts(bucket, interval_s=60)
    s3.order()
    patient, hasty = parts.open(segment_of(0), 1), parts.open(segment_of(1), 1)
    patient.append(0, line(0))
    hasty.append(0, line(0))
    await hasty.flush()
    assert puts(s3, bucket_name) == [f"{BATCH}/1.1.part/0"]
    await parts.close()
    assert patient.durable_tally.answered == 1


@pytest.mark.parametrize("deed", ["slow down", "cut", "lose the answer", "deny"])
async def test_while_the_store_refuses_nothing_counts_and_later_everything_does_once(
    s3_parts: ObjectParts, s3: S3Server, deed: Any
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.flush()
    before = writer.pinned
    s3.order(Order(deed, "PUT"))
    for ordinal in range(1, 10):
        writer.append(ordinal, line(ordinal))
    await has_stalled(s3_parts)
    room = asyncio.create_task(s3_parts.room())
    writer.append(10, line(10))  # an answer to a request that was in flight
    await s3_parts._next_commit()
    assert writer.pinned == before
    assert writer.durable_tally.answered == 1
    assert not room.done()
    s3.order()
    async with asyncio.timeout(30):
        await room
    assert s3_parts.stalled is None
    await writer.close()
    assert writer.pinned is not None
    assert await ordinals(s3_parts, [writer.pinned]) == list(range(11))
    assert await s3_parts.find(segment_of(), below=2) == [writer.pinned]
    assert s3_parts.queued_bytes == 0


async def test_a_put_whose_response_was_lost_is_what_the_next_holder_pins(
    s3_parts: ObjectParts, s3: S3Server
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    s3.order(Order("lose the answer", "PUT"))
    writer.append(0, line(0))
    await has_stalled(s3_parts)
    found = await s3_parts.find(segment_of(), below=2)
    writer.append(1, line(1))
    s3.order()
    await writer.close()
    assert await ordinals(s3_parts, found) == [0]
    assert writer.pinned is not None
    assert await ordinals(s3_parts, [writer.pinned]) == [0, 1]


async def test_a_store_that_ignores_conditions_loses_nothing(s3_parts: ObjectParts, s3: S3Server) -> None:
    s3.order(Order("lose the answer", "PUT", times=1), Order("ignore conditions", "PUT"))
    writer = s3_parts.open(segment_of(), 1)
    for ordinal in range(5):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
    assert writer.pinned is not None
    assert await ordinals(s3_parts, [writer.pinned]) == list(range(5))
    assert await s3_parts.find(segment_of(), below=2) == [writer.pinned]


async def test_parts_are_found_though_the_listing_lags_behind(s3_parts: ObjectParts, s3: S3Server) -> None:
    writer = s3_parts.open(segment_of(), 1)
    for ordinal in range(20):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
    s3.order(Order("hide", "GET", "list-type"))
    assert await s3_parts.find(segment_of(), below=2) == [writer.pinned]
    await s3_parts.delete(BATCH)  # the listing shows no object
    s3.order()
    assert await s3_parts.batches() == [BATCH]
    await s3_parts.delete(BATCH)
    assert await s3_parts.batches() == []


async def test_many_objects_are_fetched_several_at_once_and_hardly_any_in_vain(
    s3_parts: ObjectParts, s3: S3Server, bucket_name: str
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    for ordinal in range(40):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
    assert writer.pinned is not None
    s3.order()
    assert await ordinals(s3_parts, [writer.pinned]) == list(range(40))
    assert 40 <= len(s3.seen(bucket_name)) <= 43


async def test_the_records_before_the_damage_are_read_before_the_error(
    s3_parts: ObjectParts, bucket: Bucket
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    for ordinal in range(5):
        writer.append(ordinal, line(ordinal))
        await writer.flush()
    part = writer.pinned
    assert part is not None
    key = f"parts/{part.key}/3"
    whole = await bucket.get(key)
    for damaged in (whole[:-1], whole[:20] + b"?" + whole[21:], whole + b"more", None):
        if damaged is None:
            await bucket.delete([key])
        else:
            await bucket.put(key, damaged)
        seen: list[int] = []
        with pytest.raises(
            DamageError, match=rf"{part.key} is damaged behind byte \d+ of {part.length_bytes}"
        ):
            async for records in s3_parts.read([part]):
                seen += [record.ordinal for record in records]
        assert seen[:3] == [0, 1, 2]
        [found] = await s3_parts.find(segment_of(), below=2)
        assert found.length_bytes < part.length_bytes
        assert await ordinals(s3_parts, [found]) in ([0, 1, 2], [0, 1, 2, 3])


async def test_a_missing_pinned_object_is_read_again_before_it_counts_as_deleted(
    s3_parts: ObjectParts, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightmill.parts.objects._READ_AGAIN_S", 0.01)
    writer = s3_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.close()
    assert writer.pinned is not None
    looks, get = 0, bucket.get

    async def forgetful(key: str) -> bytes:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise FileNotFoundError(key)
        return await get(key)

    monkeypatch.setattr(bucket, "get", forgetful)
    assert await ordinals(s3_parts, [writer.pinned]) == [0]


async def test_an_object_of_another_writer_in_the_row_means_that_the_lease_is_lost(
    s3_parts: ObjectParts, bucket: Bucket
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.flush()
    await bucket.put(f"parts/{writer.key}/1", b"not ours")
    writer.append(1, line(1))
    with pytest.raises(LeaseLost):
        await writer.flush()
    with pytest.raises(LeaseLost):
        writer.append(2, line(2))
    assert writer.durable_tally.answered == 1
    assert s3_parts.queued_bytes == 0
    await s3_parts.room()


async def test_room_waits_while_too_much_is_queued(bucket: Bucket) -> None:
    parts = object_parts(bucket, interval_s=60, buffer_bytes=10_000)
    await parts.room()
    writer = parts.open(segment_of(), 1)
    for ordinal in range(300):
        writer.append(ordinal, line(ordinal))
    assert parts.queued_bytes > 10_000
    async with asyncio.timeout(30):  # far below the interval: a task that waits for room hurries the put
        await parts.room()
    assert parts.queued_bytes == 0
    await parts.close()


async def test_closing_tries_once_more_and_reports_what_is_lost(bucket: Bucket, s3: S3Server) -> None:
    parts = object_parts(bucket)
    writer = parts.open(segment_of(), 1)
    s3.order(Order("slow down", "PUT"))
    writer.append(0, line(0))
    writer.append(1, line(1))
    await has_stalled(parts)
    with pytest.raises(UnavailableError, match=r"2 answers could not be written \(.*SlowDown"):
        await parts.close()
    with pytest.raises(UnavailableError, match="no longer written"):
        await writer.flush()
    with pytest.raises(ValueError, match="closed"):
        parts.open(segment_of(), 2)


async def test_find_and_read_raise_an_error_while_the_store_is_unreachable(
    s3_parts: ObjectParts, s3: S3Server
) -> None:
    writer = s3_parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.close()
    assert writer.pinned is not None
    s3.order(Order("cut"))
    with pytest.raises(UnavailableError):
        await s3_parts.find(segment_of(), below=2)
    with pytest.raises(UnavailableError):
        await ordinals(s3_parts, [writer.pinned])
    with pytest.raises(UnavailableError):
        await s3_parts.batches()
