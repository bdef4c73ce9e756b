"""Sending rows and waiting for answers, against a server with answers set by the test."""

import json

import openai
import pytest

from nightmill.client import session
from nightmill.client.api import Batch
from nightmill.errors import RequestError, UnavailableError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(session, "FIRST_POLL_S", 0.001)
    monkeypatch.setattr(session, "LONGEST_POLL_S", 0.002)


def in_turn(*replies):
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_waiting_ends_when_the_batch_ends(server, client, batch_json):
    server.answer = in_turn(
        (200, batch_json(), {}),
        (200, batch_json(status="in_progress"), {}),
        (200, batch_json(status="completed", completed_at=1_700_000_100), {}),
    )
    seen: list[str] = []
    batch = client.wait("batch_1", on_change=lambda batch: seen.append(batch.status))
    assert batch.status == "completed"
    assert seen == ["validating", "in_progress", "completed"]


def test_waiting_survives_a_short_outage_of_the_server(server, client, batch_json):
    away = (503, b"{}", {"x-should-retry": "false"})
    server.answer = in_turn((200, batch_json(), {}), away, away, (200, batch_json(status="expired"), {}))
    assert client.wait("batch_1", on_change=lambda _: None).status == "expired"


def test_waiting_says_on_the_display_that_the_server_is_away(server, client, batch_json, capsys):
    away = (503, b"{}", {"x-should-retry": "false"})
    answers = [(200, batch_json(), {}), away, (200, batch_json(status="expired"), {})]
    server.answer = lambda asked: answers.pop(0) if asked.path.startswith("/v1/") else (404, b"{}", {})
    client.wait("batch_1")
    first, gone, last = capsys.readouterr().err.splitlines()
    assert first.startswith("validating")
    assert "no answer from the server for" in gone
    assert last.startswith("expired")


def test_waiting_fails_when_the_server_stays_unavailable(server, client, batch_json, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE_S", 0.0)
    server.answer = in_turn((200, batch_json(), {}), (503, b"{}", {"x-should-retry": "false"}))
    with pytest.raises(openai.InternalServerError):
        client.wait("batch_1", on_change=lambda _: None)


def test_waiting_has_a_timeout(server, client, batch_json):
    server.answer = lambda _: (200, batch_json(), {})
    with pytest.raises(UnavailableError, match=r"batch_1 is still validating after 0.01 s"):
        client.wait("batch_1", timeout_s=0.01, on_change=lambda _: None)


def test_a_large_file_is_uploaded_in_parts(server, client, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LARGEST_SINGLE_BYTES", 10)
    monkeypatch.setattr(session, "PART_BYTES", 10)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"0123456789abcde")
    file = {
        "id": "file-9",
        "object": "file",
        "bytes": 15,
        "created_at": 1,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    upload = {
        "id": "upload_1",
        "object": "upload",
        "bytes": 15,
        "created_at": 1,
        "expires_at": 2,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "pending",
    }

    def answer(asked):
        if asked.path.endswith("/parts"):
            part = {"id": f"part_{len(server.asked)}", "object": "upload.part", "created_at": 1}
            return 200, json.dumps(part | {"upload_id": "upload_1"}).encode(), {}
        done = {"status": "completed", "file": file} if asked.path.endswith("/complete") else {}
        return 200, json.dumps(upload | done).encode(), {}

    server.answer = answer
    assert client.upload(str(path)).id == "file-9"
    assert [asked.path.rsplit("/", 1)[1] for asked in server.asked] == [
        "uploads",
        "parts",
        "parts",
        "complete",
    ]


def test_answers_of_an_unfinished_batch_are_refused(server, client, batch_json):
    server.answer = lambda _: (200, batch_json(status="in_progress"), {})
    with pytest.raises(UnavailableError, match="batch_1 is in_progress"):
        client.answers("batch_1")


def test_answers_of_a_failed_batch_name_the_invalid_line(client, batch_json):
    entry = {"code": "invalid_json_line", "message": "This line is not JSON.", "param": None, "line": 3}
    failed = batch_json(status="failed", errors={"object": "list", "data": [entry]})
    with pytest.raises(RequestError, match="line 3: This line is not JSON"):
        client.answers(Batch.model_validate_json(failed))


def test_answers_of_a_batch_whose_file_is_refused_give_the_reason(client, batch_json):
    entry = {"code": "too_many", "message": "The file holds too many requests.", "param": None, "line": None}
    failed = batch_json(status="failed", errors={"object": "list", "data": [entry]})
    with pytest.raises(RequestError, match=r"^batch_1 failed: The file holds too many requests\.$"):
        client.answers(Batch.model_validate_json(failed))
