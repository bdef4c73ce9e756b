"""A retry sends the failed lines of ended batches again, and a merge puts all answers into one order."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI

from nightmill.client import AsyncRetryApi
from tests.acceptance.conftest import until
from tests.retries.conftest import line

BAD = (400, "too_odd")


def custom_ids(text: bytes) -> list[str]:
    return [json.loads(row)["custom_id"] for row in text.splitlines()]


def contents(lines) -> dict[str, str | None]:
    """The answer to each request in order, or None for an error."""
    rows = [json.loads(text) for text in lines]
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        if row["response"] and row["response"]["status_code"] == 200
        else None
        for row in rows
    }


def test_the_failed_lines_are_sent_again_byte_for_byte_and_in_their_order(mill):
    mill.upstream.failing = {"b": BAD, "d": BAD, "f": BAD}
    origin = mill.run("a", "b", "c", "d", "e", "f", blank="\n")
    assert origin.request_counts.failed == 3
    mill.upstream.failing = {}
    answer = mill.post(f"{origin.id}/retry", {}).json()
    assert answer["lines"] == 3
    assert answer["origins"] == [{"id": origin.id, "lines": 3}]
    assert answer["codes"] == {"too_odd": 3}
    retry = mill.ended(answer["batch"]["id"])
    assert mill.input_of(retry) == "".join(map(line, "bdf")).encode()
    assert (retry.request_counts.completed, retry.endpoint) == (3, origin.endpoint)
    assert mill.client.openai.files.retrieve(retry.input_file_id).filename == "retry_of_night.jsonl"


def test_lines_are_chosen_by_code_or_status(mill):
    mill.upstream.failing = {"a": BAD, "b": (404, "gone"), "c": (413, "too_long")}
    origin = mill.run("a", "b", "c", "d")
    for code, chosen in (("too_odd", ["a"]), ("404", ["b"]), ("invalid_request_error", ["a", "b", "c"])):
        answer = mill.client.retries.retry(origin.id, codes=[code], dry_run=True)
        assert (answer["lines"], answer["batch"]) == (len(chosen), None)
    made = mill.client.retries.retry(origin.id, codes=["gone", "413"])
    assert custom_ids(mill.input_of(mill.ended(made["batch"]["id"]))) == ["b", "c"]


def test_cancelled_lines_are_retried_only_on_request(mill):
    mill.upstream.held = {"slow"}
    origin = mill.submit("slow")
    until(lambda: mill.upstream.asked)
    mill.client.openai.batches.cancel(origin.id)
    assert mill.ended(origin.id).status == "cancelled"
    mill.upstream.may_answer.set()
    nothing = mill.post(f"{origin.id}/retry", {}).json()
    assert (nothing["batch"], nothing["lines"]) == (None, 0)
    made = mill.post("retry", {"ids": [origin.id], "outcomes": ["cancelled"]}).json()
    assert mill.ended(made["batch"]["id"]).request_counts.completed == 1


def test_several_batches_become_one_retry(mill):
    mill.upstream.failing = {"a": BAD, "x": BAD, "y": BAD}
    first, second = mill.run("a", "b"), mill.run("x", "y", "z")
    mill.upstream.failing = {}
    made = mill.client.retries.retry(first.id, second.id, metadata={"kind": "retry"})
    retry = mill.ended(made["batch"]["id"])
    assert custom_ids(mill.input_of(retry)) == ["a", "x", "y"]
    assert retry.metadata == {"kind": "retry"}
    assert contents(mill.client.retries.merged(second.id)) == {
        name: f"answer to {name}" for name in ("x", "y", "z")
    }


def test_equal_custom_ids_of_two_batches_are_refused_and_counted_in_a_dry_run(mill):
    mill.upstream.failing = {"a": BAD}
    first, second = mill.run("a"), mill.run("a", "b")
    dry = mill.client.retries.retry(first.id, second.id, dry_run=True)
    assert (dry["lines"], dry["duplicate_custom_ids"]) == (2, 1)
    answer = mill.post("retry", {"ids": [first.id, second.id]})
    assert answer.status == 409
    assert "1 of the lines have the same custom_id" in answer.error["message"]


def test_an_equal_custom_id_of_another_origin_does_not_get_into_a_merge(mill):
    """Line "a" of the second batch failed with a code that was not chosen."""
    mill.upstream.failing = {"a": BAD}
    first = mill.run("a")
    mill.upstream.failing = {"a": (404, "gone"), "b": BAD}
    second = mill.run("a", "b")
    mill.upstream.failing = {}
    made = mill.client.retries.retry(first.id, second.id, codes=["too_odd"])
    mill.ended(made["batch"]["id"])
    assert contents(mill.client.retries.merged(second.id)) == {"a": None, "b": "answer to b"}
    assert contents(mill.client.retries.merged(first.id)) == {"a": "answer to a"}


def test_a_merge_follows_a_chain_of_retries_and_takes_the_newest_success(mill):
    mill.upstream.failing = {"b": BAD, "c": BAD, "e": BAD}
    origin = mill.run("a", "b", "c", "d", "e")
    mill.upstream.failing = {"c": (404, "gone"), "e": BAD}
    first = mill.client.retries.retry(origin.id)["batch"]["id"]
    mill.ended(first)
    mill.upstream.failing = {"e": (413, "too_long")}
    second = mill.client.retries.retry(first)["batch"]["id"]
    mill.ended(second)
    merged = list(mill.client.retries.merged(origin.id))
    assert contents(merged) == {
        "a": "answer to a",
        "b": "answer to b",
        "c": "answer to c",
        "d": "answer to d",
        "e": None,
    }
    assert json.loads(merged[-1])["response"]["body"]["error"]["code"] == "too_long"
    assert contents(mill.client.retries.merged(first)) == {
        name: contents(merged)[name] for name in ("b", "c", "e")
    }


def test_a_merge_while_a_retry_runs_is_refused_unless_it_may_be_partial(mill):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a", "b")
    mill.upstream.failing, mill.upstream.held = {}, {"a"}
    made = mill.client.retries.retry(origin.id)["batch"]["id"]
    answer = mill.get(f"{origin.id}/merged")
    assert answer.status == 409
    assert made in answer.error["message"]
    assert contents(mill.client.retries.merged(origin.id, partial=True)) == {"a": None, "b": "answer to b"}
    mill.upstream.may_answer.set()
    mill.ended(made)
    assert contents(mill.client.retries.merged(origin.id)) == {"a": "answer to a", "b": "answer to b"}


def test_a_batch_that_runs_or_failed_validation_or_lost_its_input_cannot_be_retried(mill):
    mill.upstream.held = {"a"}
    running = mill.submit("a")
    assert mill.post(f"{running.id}/retry", {}).status == 409
    assert mill.get(f"{running.id}/merged").status == 409
    mill.upstream.may_answer.set()
    mill.ended(running.id)

    invalid = mill.ended(mill.submit("a", "a").id)
    answer = mill.post(f"{invalid.id}/retry", {})
    assert (invalid.status, answer.status) == ("failed", 409)
    assert "failed validation" in answer.error["message"]

    mill.upstream.failing = {"b": BAD}
    deleted = mill.run("b")
    mill.client.openai.files.delete(deleted.input_file_id)
    answer = mill.post(f"{deleted.id}/retry", {})
    assert answer.status == 409
    assert f"The input file '{deleted.input_file_id}'" in answer.error["message"]


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"outcomes": ["answered"]}, "outcomes"),
        ({"outcomes": []}, "outcomes"),
        ({"cods": ["404"]}, "cods"),
        ({"completion_window": "1y"}, "completion_window"),
        ({"nightmill": {"priorty": 1}}, "nightmill.priorty"),
    ],
)
def test_a_wrong_request_is_refused_by_name(mill, document, param):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a")
    answer = mill.post(f"{origin.id}/retry", document)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_repeated_request_with_its_key_makes_one_retry(mill):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a")
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"once-{origin.id}"}
    path = f"/nightmill/v1/batches/{origin.id}/retry"
    first, second = (mill.server.send("POST", path, "{}", headers).json() for _ in range(2))
    assert first["batch"]["id"] == second["batch"]["id"]
    changed = mill.server.send("POST", path, '{"codes": ["too_odd"]}', headers)
    assert (changed.status, changed.error["code"]) == (409, "idempotency_key_reuse")


def test_an_unknown_batch_is_not_found(mill):
    with pytest.raises(openai.NotFoundError):
        mill.client.retries.retry("batch_" + "0" * 32)
    assert mill.get("batch_" + "0" * 32 + "/merged").status == 404


def test_the_asynchronous_client_retries_and_merges(mill):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a", "b")
    mill.upstream.failing = {}

    async def retried() -> dict[str, str | None]:
        async with AsyncOpenAI(base_url=f"{mill.server.url}/v1", api_key="none") as client:
            api = AsyncRetryApi(client)
            made = await api.retry(origin.id)
            await asyncio.to_thread(mill.ended, made["batch"]["id"])
            return contents([text async for text in api.merged(origin.id)])

    assert asyncio.run(retried()) == {"a": "answer to a", "b": "answer to b"}


def test_the_command_retries_and_writes_the_merged_result(mill, nightmill, tmp_path):
    mill.upstream.failing = {"a": BAD, "b": (404, "gone")}
    origin = mill.run("a", "b", "c")
    assert nightmill("retry", origin.id, "--dry-run").out == "2 lines: 1x too_odd, 1x gone\n"
    nothing = nightmill("retry", origin.id, "--expired")
    assert (nothing.code, nothing.out) == (0, "no line of these batches matches; nothing was done\n")
    mill.upstream.failing = {"b": (404, "gone")}
    ran = nightmill("retry", origin.id, "--watch")
    assert ran.code == 1
    assert " is completed\n" in ran.out
    written = nightmill("results", "--merged", origin.id, "-o", tmp_path / "all.jsonl")
    assert written.code == 0
    assert contents((tmp_path / "all.jsonl").read_bytes().splitlines()) == {
        "a": "answer to a",
        "b": None,
        "c": "answer to c",
    }
    assert contents(nightmill("results", "--merged", origin.id).out.splitlines())["a"] == "answer to a"


def test_an_older_success_stands_before_a_newer_error(mill):
    mill.upstream.failing = {"a": BAD}
    origin = mill.run("a")
    mill.upstream.failing = {}
    mill.ended(mill.client.retries.retry(origin.id)["batch"]["id"])
    mill.upstream.failing = {"a": (404, "gone")}
    mill.ended(mill.client.retries.retry(origin.id)["batch"]["id"])
    assert contents(mill.client.retries.merged(origin.id)) == {"a": "answer to a"}
