"""Failures by code, distributions, the newest answers and samples of a batch, read within a bound."""

import json
import time
from collections.abc import Iterator

import pytest

from nightmill.api import batch_digests, some_answers
from nightmill.api.distributions import distribution
from nightmill.api.excerpts import LONGEST, excerpt_of
from nightmill.core.batch import Event
from tests.api.conftest import Server, serving
from tests.api.followed import SETTINGS, FollowedBatch, request
from tests.api.test_batch_insight import running_batch


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("digests"), settings=SETTINGS) as server:
        yield server


@pytest.fixture(autouse=True)
def always_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_digests, "_FRESH_S", 0.0)


def get(batch: FollowedBatch, what: str):
    answer = batch.server.send("GET", f"/nightmill/v1/batches/{batch.id}/{what}")
    assert answer.status == 200, answer.body
    return answer.json()


def finalize_any(own, batch):
    """A turn of a finalizer, which may be for the batch of another test."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(own.context.parts, "delete", kept)
        batch.finalize()


async def kept(batch_id):
    """In place of the deletion of parts that may still be needed."""


def ended(own, lines, *, failed=()):
    batch = FollowedBatch.of(own, lines)
    batch.answer_all(lines, failed=failed)
    return finished(own, batch)


def finished(own, batch):
    batch.move(Event.SETTLED)
    while own.client().batches.retrieve(batch.id).status != "completed":
        finalize_any(own, batch)
    return batch


def test_failures_of_a_running_batch_are_grouped_with_three_samples(own):
    batch = FollowedBatch.of(own, 9)
    batch.answer_all(3)
    for ordinals in ((3, 4, 5), (6, 7)):
        batch.answer(batch.lease(), failed=ordinals)
    found = get(batch, "failures")
    (group,) = found["data"]
    assert (found["failed"], found["read"], found["is_whole"]) == (5, 5, True)
    assert (group["code"], group["count"], group["outcome"]) == ("too_long", 5, "failed")
    assert [sample["custom_id"] for sample in group["samples"]] == ["line-6", "line-7", "line-3"]
    assert {sample["status"] for sample in group["samples"]} == {400}


def test_failures_of_an_ended_batch_are_read_from_its_error_file(own):
    found = get(ended(own, 6, failed=[1, 5]), "failures")
    assert (found["data"][0]["count"], found["is_whole"]) == (2, True)
    assert [sample["ordinal"] for sample in found["data"][0]["samples"]] == [1, 5]


def test_lines_that_were_not_sent_before_the_end_have_a_group_of_their_own(own):
    batch = FollowedBatch.of(own, 9)
    batch.answer_all(3, failed=[1])
    batch.move(Event.LAPSED)
    while own.client().batches.retrieve(batch.id).status != "expired":
        finalize_any(own, batch)
    found = get(batch, "failures")
    assert (found["failed"], found["lines"], found["read"]) == (1, 7, 7)
    assert [(group["code"], group["count"], group["outcome"]) for group in found["data"]] == [
        ("batch_expired", 6, "expired"),
        ("too_long", 1, "failed"),
    ]


def test_invalid_lines_are_counted_as_such_since_a_retry_leaves_them_out(own):
    content = b"".join((request(0), b"{\n", request(2)))
    batch = FollowedBatch.of(own, 3, content=content, extra_body={"nightmill": {"on_invalid": "skip"}})
    holder = batch.lease()
    batch.answer(holder, 0, failed=[2])
    batch.complete(holder)
    groups = {group["code"]: group for group in get(finished(own, batch), "failures")["data"]}
    assert {code: (group["count"], group["invalid"]) for code, group in groups.items()} == {
        "invalid_json_line": (1, 1),
        "too_long": (1, 0),
    }
    (sample,) = groups["invalid_json_line"]["samples"]
    assert (sample["ordinal"], "not parseable" in sample["message"]) == (1, True)


def test_a_long_file_is_read_at_places_spread_over_it_and_the_document_says_so(own, monkeypatch):
    batch = ended(own, 300, failed=range(300))
    monkeypatch.setattr(some_answers, "_PLACES", 4)
    monkeypatch.setattr(some_answers.some_answers, "__kwdefaults__", {"most_bytes": 6_000})
    found = get(batch, "failures")
    assert not found["is_whole"]
    assert 20 < found["read"] < 60
    assert found["failed"] == 300


def test_a_deleted_error_file_is_said(own):
    batch = ended(own, 3, failed=[0])
    made = own.client().batches.retrieve(batch.id)
    own.client().files.delete(made.error_file_id)
    answer = own.send("GET", f"/nightmill/v1/batches/{batch.id}/failures")
    assert (answer.status, "is deleted" in answer.error["message"]) == (409, True)


def test_a_document_is_made_again_only_after_a_moment(own, monkeypatch):
    monkeypatch.setattr(batch_digests, "_FRESH_S", 600.0)
    batch = FollowedBatch.of(own, 6)
    assert get(batch, "failures")["read"] == 0
    batch.answer(batch.lease(), failed=[0])
    assert get(batch, "failures")["read"] == 0
    monkeypatch.setattr(batch_digests, "_FRESH_S", 0.0)
    assert get(batch, "failures")["read"] == 1


def test_the_newest_answers_of_a_running_batch_come_first_and_each_once(own):
    batch = FollowedBatch.of(own, 6)
    assert get(batch, "latest")["data"] == []
    holder = batch.lease()
    batch.answer(holder, 2, 0)
    found = get(batch, "latest")
    assert [row["custom_id"] for row in found["data"]] == ["line-0", "line-2"]
    assert (found["is_running"], found["data"][0]["excerpt"]) == (True, "ok")
    batch.answer(holder, failed=[1])
    again = get(batch, "latest?limit=2")["data"]
    assert [(row["custom_id"], row["code"]) for row in again] == [("line-1", "too_long"), ("line-0", None)]
    batch.complete(holder)
    other = batch.lease()
    batch.answer(other, 5)
    assert [row["ordinal"] for row in get(batch, "latest")["data"]] == [5, 1, 0, 2]


def test_the_newest_answers_of_an_ended_batch_are_the_last_lines_of_both_files(own):
    found = get(ended(own, 6, failed=[4]), "latest?limit=3")
    assert [(row["ordinal"], row["outcome"]) for row in found["data"]] == [
        (3, "completed"),
        (4, "failed"),
        (5, "completed"),
    ]
    assert not found["is_running"]


def test_tokens_are_spread_over_bars(own):
    batch = FollowedBatch.of(own, 6)
    batch.answer_all(6)
    found = get(batch, "distributions")
    assert (found["answers"]["read"], found["answers"]["is_whole"]) == (6, True)
    assert found["answers"]["output_tokens"] is None
    assert found["attempts"] is None


def test_samples_are_given_in_the_order_of_time(tmp_path):
    with serving(tmp_path) as server:
        batch_id = running_batch(server, answered=100)
        found = server.send("GET", f"/nightmill/v1/batches/{batch_id}/samples").json()["data"]
    assert [row["completed"] for row in found] == [2 * 5 * number for number in range(10)]
    assert found[-1]["in_flight"] == 4
    assert found[0]["at"] < found[-1]["at"] <= time.time()


def test_the_newest_entries_of_the_history_come_first_on_request(own):
    batch = ended(own, 3)
    found = get(batch, "events?order=desc&limit=2")
    assert [event["kind"] for event in found["data"]] == ["completed", "finalizing"]
    older = get(batch, f"events?order=desc&after={found['last_id']}")
    assert [event["kind"] for event in older["data"]] == ["in_progress", "created"]


@pytest.mark.parametrize("values", [[3], [0, 0], [1, 2, 3, 4], [0.1, 0.2, 9.0], [1, *range(40, 90), 4_000]])
def test_bars_hold_every_value_once(values):
    found = distribution(values)
    assert sum(bar["count"] for bar in found["bars"]) == len(values)
    assert found["bars"][0]["from"] <= min(values)
    assert max(values) < found["bars"][-1]["to"]
    assert len(found["bars"]) <= 13
    for bar in found["bars"]:
        assert bar["count"] == sum(bar["from"] <= value < bar["to"] for value in values)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "Hi\nyou"}}]}, "Hi you"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}, "a"),
        (
            {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]},
            "f({})",
        ),
        ({"choices": [{"text": "x"}]}, "x"),
        ({"output": [{"content": [{"text": "a"}, {"text": "b"}]}]}, "a b"),
        ({"data": [{"embedding": [1, 2]}]}, "vector of 2 numbers"),
        ({"results": [{"flagged": True}]}, "flagged"),
        ({"choices": [None]}, ""),
        ("odd", ""),
    ],
)
def test_an_excerpt_is_the_text_of_the_answer(body, text):
    line = {"id": "1", "custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}
    found = excerpt_of(json.dumps(line).encode())
    assert (found.custom_id, found.status, found.text) == ("a", 200, text)


def test_an_excerpt_is_bounded():
    body = {"choices": [{"text": "long " * 1_000}]}
    line = {"id": "1", "custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}
    assert len(excerpt_of(json.dumps(line).encode()).text) <= LONGEST
