"""The request, the attempts and the answer of one line over HTTP."""

import json

import pytest

from tests.acceptance.conftest import until
from tests.retries.conftest import line

BAD = (400, "too_odd")


def content_of(mill, batch_id, number, **query):
    words = "&".join(f"{name}={value}" for name, value in query.items())
    return mill.get(f"{batch_id}/lines/{number}?{words}").json()


def test_a_line_of_an_ended_batch_has_request_attempts_answer_and_neighbours(mill):
    mill.upstream.failing = {"bad": BAD, "worse": BAD}
    batch = mill.run("bad", "good", "worse", "last", blank="\n", record_attempts=True)
    found = content_of(mill, batch.id, 4)
    assert (found["custom_id"], found["line"], found["ordinal"], found["state"]) == ("good", 4, 1, "answered")
    assert found["request"]["text"] + "\n" == line("good")
    assert found["request"]["offset"] == mill.input_of(batch).index(line("good").encode())
    answer = json.loads(found["answer"]["text"])
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "answer to good"
    assert found["file_id"] == batch.output_file_id
    (attempt,) = found["attempts"]
    assert (attempt["ordinal"], attempt["status"], attempt["upstream"], attempt["lease"]) == (
        1,
        200,
        "default",
        1,
    )
    assert (found["previous"], found["next"]) == (2, 6)
    assert (found["previous_failed"], found["next_failed"]) == (2, 6)
    assert found["batch"]["endpoint"] == "/v1/chat/completions"
    first, last = content_of(mill, batch.id, 2), content_of(mill, batch.id, 8)
    assert (first["state"], first["code"], first["previous"]) == ("failed", "too_odd", None)
    assert (first["previous_failed"], first["next_failed"]) == (None, 6)
    assert (last["next"], last["previous_failed"], last["next_failed"]) == (None, 6, None)


def test_every_line_of_several_segments_has_its_own_attempt_and_answer(mill):
    names = [f"line-{number}" for number in range(11)]
    batch = mill.run(*names, record_attempts=True)
    for number, name in enumerate(names, 1):
        found = content_of(mill, batch.id, number)
        assert [record["custom_id"] for record in found["attempts"]] == [name]
        assert json.loads(found["answer"]["text"])["custom_id"] == name


def test_a_running_batch_gives_answers_from_its_parts_and_does_not_wait_for_a_worker(mill):
    mill.upstream.held = {"slow"}
    batch = mill.submit("quick", "slow")
    until(lambda: "slow" in mill.upstream.asked)
    found = until(lambda: (it := content_of(mill, batch.id, 1))["state"] == "answered" and it)
    assert "answer to quick" in found["answer"]["text"]
    found = content_of(mill, batch.id, 2)
    assert found["state"] in ("leased", "in_flight")
    assert (found["answer"], found["attempts"]) == (None, None)
    # The first look has asked the worker, so a later one has its report.
    until(lambda: content_of(mill, batch.id, 2)["state"] == "in_flight")
    assert mill.get(f"{batch.id}/lines?line=2&wait=false").json()["upstream"] == "default"


def test_a_line_is_found_by_its_ordinal(mill):
    batch = mill.run("a", "b", blank="\n\n")
    assert mill.get(f"{batch.id}/lines?ordinal=1").json()["line"] == 6
    assert mill.get(f"{batch.id}/lines?ordinal=2").status == 404
    assert mill.get(f"{batch.id}/lines?ordinal=1&line=6").status == 400


def test_long_texts_are_cut_and_say_how_long_they_are(mill):
    batch = mill.run("ü" * 100)
    found = content_of(mill, batch.id, 1, max_bytes=0)
    assert (found["request"]["text"], found["request"]["is_cut"]) == ("", True)
    whole = len(mill.input_of(batch)) - 1
    assert found["request"]["size_bytes"] == whole
    assert found["answer"]["is_cut"]
    found = content_of(mill, batch.id, 1, max_bytes=whole)
    assert (found["request"]["size_bytes"], found["request"]["is_cut"]) == (whole, False)


def test_a_file_that_failed_validation_shows_its_lines_with_their_errors(mill):
    # The beginning of a file is looked at while it is uploaded.
    good = [line(f"line-{number}").encode() for number in range(1_000)]
    text = b"".join(good) + b'{"custom_id": "\xff\xfe\n' + line("last").encode()
    uploaded = mill.client.openai.files.create(file=("bad.jsonl", text), purpose="batch")
    batch = mill.client.openai.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = mill.ended(batch.id)
    found = content_of(mill, batch.id, 1_001)
    assert (found["state"], found["custom_id"], found["answer"]) == (None, None, None)
    assert found["request"]["text"] == '{"custom_id": "\ufffd\ufffd'
    assert found["invalid"]["line"] == 1_001
    assert found["invalid"]["code"]
    assert content_of(mill, batch.id, 1)["invalid"] is None
    assert "failed validation" in found["reason"]


def test_a_line_that_was_skipped_as_invalid_has_its_row_of_the_report(mill):
    text = line("good").encode() + b"nonsense\n" + line("last").encode()
    uploaded = mill.client.openai.files.create(file=("bad.jsonl", text), purpose="batch")
    batch = mill.client.openai.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"nightmill": {"on_invalid": "skip"}},
    )
    batch = mill.ended(batch.id)
    found = content_of(mill, batch.id, 2)
    assert (found["state"], found["invalid"]["code"]) == ("failed", "invalid_json_line")
    assert content_of(mill, batch.id, 3)["previous_failed"] == 2


def test_deleted_files_leave_what_is_there(mill):
    batch = mill.run("a")
    mill.client.openai.files.delete(batch.output_file_id)
    found = content_of(mill, batch.id, 1)
    assert (found["state"], found["answer"]) == (None, None)
    assert "deleted" in found["reason"]
    assert found["request"]["text"] + "\n" == line("a")


@pytest.mark.parametrize("path", ["lines/2", "lines/0", "lines/x", "lines/99999999999999999999", "lines/-1"])
def test_a_number_without_a_line_is_refused(mill, path):
    batch = mill.run("a")
    answer = mill.get(f"{batch.id}/{path}")
    assert answer.status in (400, 404)
    assert answer.error


def test_any_custom_id_can_be_shown(mill):
    batch = mill.run("first")
    text = (line("x").replace('"x"', '"\\ud800 \\u0000 <script>"', 1)).encode()
    uploaded = mill.client.openai.files.create(file=("odd.jsonl", text), purpose="batch")
    batch = mill.ended(
        mill.client.openai.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
    )
    assert content_of(mill, batch.id, 1)["custom_id"] == "? \0 <script>"
    assert mill.get(f"{batch.id}/lines?line=1").json()["custom_id"] == "? \0 <script>"
