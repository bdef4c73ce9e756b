"""Why lines failed: groups of the lines of an error file, read from any server."""

import json

import pytest
from openai.types import Batch

from nightmill.client.failures import MOST_LINES, FailureReader, grouped, read_failures
from nightmill.core.words import FailureGroup

NOPE = {"error": {"message": "The model nope does not exist.", "code": "model_not_found"}}


def failed_line(status: int = 404, body: object = NOPE) -> bytes:
    row = {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": status, "body": body}}
    return json.dumps({**row, "error": None}).encode()


def unsent_line(code: str) -> bytes:
    return json.dumps(
        {"custom_id": "a", "response": None, "error": {"code": code, "message": "Too late."}}
    ).encode()


def test_equal_failures_are_one_group_and_the_most_frequent_comes_first():
    found = grouped([unsent_line("upstream_timeout"), failed_line(), failed_line()])
    assert found == [
        FailureGroup(2, "404", "The model nope does not exist."),
        FailureGroup(1, "upstream_timeout", "Too late."),
    ]


def test_lines_that_were_not_sent_in_time_are_no_failures():
    assert grouped([unsent_line("batch_expired"), unsent_line("batch_cancelled")]) == []


def test_messages_that_differ_in_numbers_are_one_group():
    bodies = [
        {"error": {"message": f"You asked for {count} tokens, at most 4096."}} for count in (5_000, 6_000)
    ]
    assert grouped(failed_line(400, body) for body in bodies) == [
        FailureGroup(2, "400", "You asked for 5000 tokens, at most 4096.")
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "no such model"}, "no such model"),
        ({"detail": [{"msg": "field required", "loc": ["body"]}]}, "field required"),
        ({"object": "error", "message": "too long"}, "too long"),
        ("bad gateway", "bad gateway"),
        ({"other": 1}, ""),
        (None, ""),
    ],
)
def test_the_message_is_found_in_the_forms_that_servers_have(body, message):
    assert grouped([failed_line(502, body)]) == [FailureGroup(1, "502", message)]


def test_a_line_that_is_none_of_an_error_file_is_left_out():
    assert grouped([b"{", b"[]", b"{}", b'"x"']) == []


def made(**changes: object) -> Batch:
    fields: dict = {
        "id": "batch_1",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "created_at": 1,
        "status": "completed",
        "error_file_id": "file-2",
        "request_counts": {"total": 9, "completed": 7, "failed": 2},
    }
    return Batch.model_validate(fields | changes)


def test_the_failures_of_an_ended_batch_are_in_its_error_file(server, client):
    server.answer = lambda _: (200, failed_line() + b"\n" + failed_line() + b"\n", {})
    assert read_failures(client.openai, made())[0].count == 2
    assert [asked.path for asked in server.asked] == ["/v1/files/file-2/content"]


def test_only_the_beginning_of_a_long_error_file_is_read(server, client):
    server.answer = lambda _: (200, (failed_line() + b"\n") * (MOST_LINES + 7), {})
    assert read_failures(client.openai, made())[0].count == MOST_LINES


def test_the_failures_of_a_running_batch_are_among_its_results(server, client):
    page = {
        "status": "in_progress",
        "cursor": "c",
        "has_more": True,
        "data": [{"cursor": "c", "outcome": "failed", "line": json.loads(failed_line())}],
    }
    server.answer = lambda _: (200, json.dumps(page).encode(), {})
    running = made(status="in_progress", error_file_id=None)
    assert read_failures(client.openai, running)[0].code == "404"
    assert server.asked[0].path.startswith("/nightmill/v1/batches/batch_1/results?outcome=failed")


def test_of_a_running_batch_only_new_failures_are_read_again(server, client):
    line = {"cursor": "c", "outcome": "failed", "line": json.loads(failed_line())}
    page = {"status": "in_progress", "has_more": True, "data": [line]}
    server.answer = lambda _: (200, json.dumps(page | {"cursor": f"after-{len(server.asked)}"}).encode(), {})
    reader = FailureReader(client.openai)
    running = made(status="in_progress", error_file_id=None)
    assert [reader.read(running)[0].count for _ in range(2)] == [1, 2]
    # Later than the first time, there may be many answers.
    many = {"total": 90_000, "completed": 60_000, "failed": 1}
    assert reader.read(made(status="in_progress", request_counts=many))[0].count == 3
    assert ["after=after-2" in asked.path for asked in server.asked] == [False, False, True]


def test_nothing_is_asked_without_failures_or_where_it_would_be_costly(server, client):
    counts = {"total": 9, "completed": 9, "failed": 0}
    assert read_failures(client.openai, made(request_counts=counts)) == []
    many = {"total": 90_000, "completed": 60_000, "failed": 1}
    assert read_failures(client.openai, made(request_counts=many, status="in_progress")) == []
    assert server.asked == []


def test_a_server_that_has_no_such_answer_gives_no_groups(server, client):
    assert read_failures(client.openai, made(status="in_progress")) == []
    assert read_failures(client.openai, made()) == []
