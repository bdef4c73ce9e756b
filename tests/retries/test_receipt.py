"""The receipt of a batch over HTTP, the command line and Python, and budgets that stop it."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI

from nightmill.client import AsyncRetryApi
from tests.acceptance.conftest import until

BAD = (400, "too_odd")


def test_a_receipt_counts_lines_errors_and_tokens(mill):
    mill.upstream.failing = {"a": BAD, "b": (404, "gone"), "c": BAD}
    batch = mill.run("a", "b", "c", "d", "e")
    receipt = mill.get(f"{batch.id}/receipt").json()
    assert receipt["lines"] == {
        "total": 5, "answered": 2, "failed": 3, "expired": 0, "cancelled": 0, "invalid": 0,
    }  # fmt: skip
    assert receipt["errors"] == {"too_odd": 2, "gone": 1}
    assert (receipt["usage"]["input_tokens"], receipt["usage"]["output_tokens"]) == (6, 20)
    assert receipt["cost"] == pytest.approx((6 * 1_000 + 20 * 2_000) / 1_000_000)
    assert receipt["deadline_met"] is True
    assert receipt["seconds"]["total"] == batch.completed_at - batch.created_at
    assert (receipt["stop_reason"], receipt["origins"], receipt["retries"]) == (None, [], [])


def test_a_receipt_names_the_origins_and_the_retries(mill):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a")
    made = mill.ended(mill.client.retries.retry(origin.id)["batch"]["id"])
    assert mill.client.retries.receipt(origin.id)["retries"] == [made.id]
    assert mill.client.retries.receipt(made.id)["origins"] == [{"id": origin.id, "lines": 1}]


def test_a_running_batch_has_no_receipt_and_a_deleted_error_file_no_counts(mill):
    mill.upstream.held, mill.upstream.failing = {"a"}, {"a": BAD}
    batch = mill.submit("a")
    assert mill.get(f"{batch.id}/receipt").status == 409
    mill.upstream.may_answer.set()
    batch = mill.ended(batch.id)
    mill.client.openai.files.delete(batch.error_file_id)
    receipt = mill.get(f"{batch.id}/receipt").json()
    assert (receipt["errors"], receipt["lines"]["failed"], receipt["lines"]["expired"]) == (None, 1, None)


def test_a_batch_that_spent_its_budget_ends_cancelled_and_says_why(mill, nightmill):
    names = [f"bad-{number}" for number in range(3)]
    mill.upstream.failing = dict.fromkeys(names, BAD)
    mill.upstream.held = {f"held-{number}" for number in range(9)}
    batch = mill.ended(mill.submit(*names, *sorted(mill.upstream.held), max_failures=2).id)
    assert batch.status == "cancelled"
    rows = [json.loads(text) for text in mill.client.lines(batch.error_file_id)]
    cancelled = [row["error"] for row in rows if row["error"]]
    assert len(rows) == 12
    assert cancelled[0]["code"] == "batch_cancelled"
    assert "3 lines have failed, and the batch allows 2." in cancelled[0]["message"]
    ran = nightmill("receipt", batch.id)
    assert ran.code == 0
    assert "stopped   max_failures: 3 lines have failed, and the batch allows 2." in ran.out
    assert "12 total, 0 ok, 3 failed, 0 expired, 9 cancelled, 0 invalid" in ran.out
    assert json.loads(nightmill("receipt", batch.id, "--json").out)["stop_reason"]["code"] == "max_failures"
    assert "3 lines have failed, and the batch allows 2." in nightmill("show", batch.id).out
    assert "stopped: 3 lines have failed, and the batch allows 2.\n" in nightmill("watch", batch.id).err


def test_the_asynchronous_client_reads_a_receipt(mill):
    batch = mill.run("a")

    async def read():
        async with AsyncOpenAI(base_url=f"{mill.server.url}/v1", api_key="none") as client:
            return await AsyncRetryApi(client).receipt(batch.id)

    assert asyncio.run(read())["lines"]["answered"] == 1


def test_a_cost_budget_stops_a_batch(mill):
    mill.upstream.held = {"held"}
    batch = mill.submit("a", "b", "held", max_cost=0.02)
    until(lambda: mill.client.openai.batches.retrieve(batch.id).status == "cancelled")
    receipt = mill.client.retries.receipt(batch.id)
    assert receipt["stop_reason"]["code"] == "max_cost"
    assert receipt["deadline_met"] is None
