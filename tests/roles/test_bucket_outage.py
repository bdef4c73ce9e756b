"""A bucket that goes away while a batch runs, and comes back."""

import asyncio
from typing import Any

import pytest

from nightmill.core.batch import Status
from nightmill.core.outcome import Answered, Outcome
from tests.s3_server import Order, S3Server

ANSWER = b'{"choices": [{"message": {"content": "hello"}}]}'


def lines(count: int) -> bytes:
    return b"".join(
        b'{"custom_id": "line-%d", "method": "POST", "url": "/v1/chat/completions",'
        b' "body": {"model": "m", "messages": [{"role": "user", "content": "%d"}]}}\n' % (number, number)
        for number in range(count)
    )


@pytest.mark.parametrize("deed", ["slow down", "lose the answer"])
async def test_a_bucket_that_is_away_for_a_while_costs_no_answer(
    s3_mill: Any, s3: S3Server, deed: Any
) -> None:
    mill, slots, total = s3_mill, 4, 60
    sent: list[bytes] = []
    half_way, stall_seen = asyncio.Event(), asyncio.Event()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent.append(body)
        if len(sent) == total // 2:
            s3.order(Order(deed, "PUT|POST|GET|HEAD"))
            half_way.set()
            return Answered(200, ANSWER)
        if half_way.is_set():
            await stall_seen.wait()
        return Answered(200, ANSWER)

    batch = await mill.accepted(lines(total))
    parts = mill.parts()
    worker = mill.worker(send, parts=parts, slots=slots)

    async def come_back() -> None:
        await half_way.wait()
        while parts.stalled is None:
            await parts._next_commit()
        stall_seen.set()
        while worker.in_flight:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        seen = len(sent)
        await asyncio.sleep(0.3)
        assert len(sent) == seen < total  # nothing is sent that can't be kept
        s3.order()

    coming_back = asyncio.create_task(come_back())
    [ended] = await mill.run_to_the_end(worker, batch)
    await coming_back
    assert ended.status is Status.COMPLETED
    rows = await mill.rows(ended.output_file_id)
    assert sorted(row["custom_id"] for row in rows) == sorted(f"line-{number}" for number in range(total))
    assert len(sent) == len(set(sent)) == total


@pytest.mark.parametrize("orders", [[], [Order("lose the answer", "POST", "uploadId=", times=1)]])
async def test_an_output_larger_than_a_part_is_streamed_as_a_multipart_upload(
    s3_mill: Any, s3: S3Server, bucket_name: str, orders: list[Order]
) -> None:
    mill, total = s3_mill, 24
    long = b'{"choices": [{"message": {"content": "%s"}}]}' % (b"x" * (500 << 10))

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        return Answered(200, long)

    batch = await mill.accepted(lines(total))
    s3.order(*orders)
    [ended] = await mill.run_to_the_end(mill.worker(send, slots=4), batch)
    pieces = [request for request in s3.seen(bucket_name) if "partNumber=" in request]
    assert ended.status is Status.COMPLETED
    assert len({request.partition("partNumber=")[2] for request in pieces}) >= 3
    assert len(await mill.rows(ended.output_file_id)) == total
