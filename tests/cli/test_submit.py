"""`nightmill submit` checks a file before anything is uploaded."""

import json

import pytest

from tests.client.conftest import Server, batch_json, server

__all__ = ["batch_json", "server"]

FILE = {"id": "file-1", "object": "file", "bytes": 2, "created_at": 1, "filename": "x", "purpose": "batch"}
BAD = ("{'custom_id': 'a'}", *["[]"] * 20)


@pytest.fixture(autouse=True)
def batch_server(server: Server, batch_json, monkeypatch) -> Server:
    """Takes every file and batch; its OpenAPI document names two endpoints and two windows."""
    enums = {
        "endpoint": {"enum": ["/v1/chat/completions", "/v1/embeddings"]},
        "completion_window": {"enum": ["24h", "2h"]},
    }
    known = {"components": {"schemas": {"CreateBatchRequest": {"properties": enums}}}}
    answers = {
        "/openapi.json": json.dumps(known).encode(),
        "/v1/files": json.dumps(FILE).encode(),
        "/v1/batches": batch_json(),
    }
    server.answer = lambda asked: (200, answers[asked.path], {})
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    return server


def uploads(server: Server) -> int:
    return sum(asked.path == "/v1/files" for asked in server.asked)


def test_a_good_file_is_uploaded(server, nightmill, input_file):
    ran = nightmill("submit", input_file(3), "--window", "2h")
    assert (ran.code, ran.out) == (0, "batch_1\n")
    assert uploads(server) == 1
    assert server.asked[-1].json["completion_window"] == "2h"


def test_bad_lines_are_grouped_and_nothing_is_uploaded(server, nightmill, input_file):
    ran = nightmill("submit", input_file(2, bad=BAD))
    assert (ran.code, ran.out, uploads(server)) == (2, "", 0)
    assert "line 3: invalid_json_line\n" in ran.err
    assert "json.dumps()" in ran.err
    assert "20 lines: invalid_type (lines 4, 5, 6, 7, 8 and 15 more)\n" in ran.err
    assert "nothing was uploaded: 21 of 23 lines are invalid; correct them, send the others" in ran.err


def test_a_file_without_a_valid_line_is_refused_even_if_invalid_lines_are_skipped(
    server, nightmill, input_file
):
    ran = nightmill("submit", input_file(0, bad=('{"custom_id": "a", "url": "/v1/embeddings"}',)))
    assert "1 of 1 line is invalid; correct them, or let" in ran.err
    ran = nightmill(
        "submit", input_file(0, bad=BAD[:1]), "--endpoint", "/v1/embeddings", "--on-invalid", "skip"
    )
    assert (ran.code, uploads(server)) == (2, 0)


def test_invalid_lines_are_announced_and_skipped_on_demand(server, nightmill, input_file):
    ran = nightmill("submit", input_file(2, bad=BAD), "--on-invalid", "skip")
    assert (ran.code, ran.out, uploads(server)) == (0, "batch_1\n", 1)
    assert "21 of 23 lines are invalid and will be in the error file" in ran.err


def test_without_the_check_the_server_judges(server, nightmill, input_file):
    ran = nightmill("submit", input_file(2, bad=BAD), "--no-check", "--window", "9h")
    assert (ran.code, ran.out, uploads(server)) == (0, "batch_1\n", 1)


def test_the_limits_and_models_of_the_server_are_left_to_the_server(server, nightmill, tmp_path):
    body = {"messages": [{"role": "user", "content": "x"}]}
    line = {"custom_id": "0", "method": "POST", "url": "/v1/chat/completions"}
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(
            json.dumps(line | {"custom_id": str(number), "body": body | {"model": f"model-{number}"}}) + "\n"
            for number in range(40)
        )
    )
    assert nightmill("submit", path).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "9h"], "this server has no completion window '9h'; it has 24h, 2h"),
        (["--endpoint", "/v1/rerank"], "this server has no endpoint '/v1/rerank'"),
        (["--endpoint", "/v1/embeddings"], "3 lines: invalid_url (lines 1, 2, 3)"),
    ],
)
def test_what_the_server_would_refuse_is_not_uploaded(server, nightmill, input_file, words, message):
    ran = nightmill("submit", input_file(3), *words)
    assert (ran.code, ran.out, uploads(server)) == (2, "", 0)
    assert message in ran.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,review\n1,x\n", "is a CSV table with the columns id, review; turn it into request lines with:"),
        (b"", "is empty; write one request per line"),
        (bytes(range(1, 256)) * 9, "is binary data, not UTF-8 text (byte 0x01 at offset 0, in line 1);"),
        (b'{"custom_id": "a"}\n', "names no endpoint in 'url'; name it with --endpoint"),
    ],
)
def test_what_is_no_request_lines_is_refused_before_the_server_is_asked(
    server, nightmill, tmp_path, text, message
):
    path = tmp_path / "in.jsonl"
    path.write_bytes(text)
    ran = nightmill("submit", path)
    assert (ran.code, ran.out, server.asked, ran.err.count("\n")) == (2, "", [], 1)
    assert message in ran.err


def test_lines_from_stdin_are_submitted(server, nightmill, input_file, monkeypatch):
    path = input_file(2)
    with path.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        ran = nightmill("submit", "-")
    assert (ran.code, ran.out) == (0, "batch_1\n")
    assert path.read_bytes() in server.asked[-2].body


def test_an_upload_that_stays_is_named(server, nightmill, input_file):
    answers = server.answer
    failed = (500, b"{}", {"x-should-retry": "false"})
    server.answer = lambda asked: failed if asked.path == "/v1/batches" else answers(asked)
    ran = nightmill("submit", input_file(1))
    assert ran.code == 75
    assert "delete it with: nightmill files delete file-1" in ran.err


def test_an_upload_for_a_batch_is_refused_if_it_is_no_request_lines(server, nightmill, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,review\n1,x\n")
    ran = nightmill("files", "upload", path)
    assert (ran.code, server.asked) == (2, [])
    assert "nightmill convert" in ran.err
    assert nightmill("files", "upload", path, "--purpose", "user_data").out == "file-1\n"
