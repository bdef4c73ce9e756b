"""The recorded attempts of a batch over HTTP, the command line and Python."""

import asyncio
import json

from openai import AsyncOpenAI

from nightmill.client import AsyncRetryApi
from tests.acceptance.conftest import until

BAD = (400, "too_odd")


def test_each_attempt_is_recorded_without_prompt_and_answer(mill, nightmill):
    mill.upstream.failing = {"secret-b": BAD}
    batch = mill.run("secret-a", "secret-b", record_attempts=True)
    records = [json.loads(text) for text in mill.client.retries.attempts(batch.id)]
    assert {record["custom_id"]: record["status"] for record in records} == {"secret-a": 200, "secret-b": 400}
    by_line = {record["ordinal"]: record for record in records}
    assert (by_line[1]["code"], by_line[1]["is_error"], by_line[0]["is_error"]) == ("too_odd", True, False)
    for record in records:
        assert (record["attempt"], record["upstream"], record["outcome"]) == (1, "default", "answered")
        assert record["duration_s"] >= 0
        assert batch.created_at - 1 <= record["started_at"] <= batch.completed_at + 1
        assert record["wait_s"] is None
    printed = nightmill("attempts", batch.id).out
    assert [json.loads(text) for text in printed.splitlines()] == records
    assert "answer to" not in printed
    receipt = mill.client.retries.receipt(batch.id)
    assert (receipt["attempts"], receipt["upstreams"]) == ({"sent": 2, "retried": 0}, {"default": 2})
    assert "2 sent, 0 again" in nightmill("receipt", batch.id).out


def test_a_receipt_counts_attempts_that_were_repeated_without_the_option(mill):
    mill.upstream.failing["busy"] = (503, "")
    try:
        batch = mill.submit("busy", "calm")
        until(lambda: mill.upstream.asked.count("busy"))
    finally:
        del mill.upstream.failing["busy"]
    batch = mill.ended(batch.id)
    asked = mill.upstream.asked.count("busy") + mill.upstream.asked.count("calm")
    receipt = mill.client.retries.receipt(batch.id)
    assert receipt["lines"]["answered"] == 2
    assert receipt["attempts"] == {"sent": asked, "retried": asked - 2}
    assert asked > 2


def test_a_batch_without_the_option_has_no_attempts(mill):
    batch = mill.run("a")
    answer = mill.get(f"{batch.id}/attempts")
    assert answer.status == 409
    assert "without 'record_attempts'" in answer.error["message"]
    receipt = mill.client.retries.receipt(batch.id)
    assert (receipt["attempts"], receipt["upstreams"]) == ({"sent": 1, "retried": 0}, None)
    assert not [name for name in mill.server.blobs("attempts/") if batch.id in name]


def test_the_asynchronous_client_reads_attempts(mill):
    batch = mill.run("a", "b", record_attempts=True)

    async def read():
        async with AsyncOpenAI(base_url=f"{mill.server.url}/v1", api_key="none") as client:
            return [text async for text in AsyncRetryApi(client).attempts(batch.id)]

    assert len(asyncio.run(read())) == 2
