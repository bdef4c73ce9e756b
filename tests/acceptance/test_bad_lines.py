"""Unusual input files and upstream answers: an error names the line, or the content is passed on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import CHAT, Server, ended, until

LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    b'"body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n'
)


def line(custom_id: str, **changes: Any) -> bytes:
    return json.dumps(json.loads(LINE) | {"custom_id": custom_id} | changes).encode() + b"\n"


# --- lines --------------------------------------------------------------------------------------------


def errors_of(server: Server, content: bytes) -> list[tuple[int | None, str]]:
    batch = server.run(content)
    assert batch.status == "failed", batch
    assert batch.request_counts.total == 0
    return [(error.line, error.code) for error in batch.errors.data]


LINES = {
    "nul": (b'{"custom_id": "a\0"}', "invalid_json_line"),
    "only a nul": (b"\0", "invalid_json_line"),
    "not utf-8": (LINE[:-1].replace(b"Hi", b"\xc3\x28"), "invalid_json_line"),
    "overlong utf-8": (LINE[:-1].replace(b"Hi", b"\xc0\xaf"), "invalid_json_line"),
    "a surrogate in utf-8": (LINE[:-1].replace(b"Hi", b"\xed\xa0\xbd"), "invalid_json_line"),
    "nan": (LINE[:-1].replace(b'"Hi"', b"NaN"), "invalid_json_line"),
    "an array": (b"[]", "invalid_type"),
    "a thousand levels": (
        LINE[:-1].replace(b'"Hi"', b"[" * 1_000 + b"]" * 1_000),
        "nesting_too_deep",
    ),
    "a million levels": (LINE[:-1].replace(b'"Hi"', b"[" * 1_000_000), None),
    "custom_id a number": (LINE[:-1].replace(b'"a"', b"1"), "invalid_type"),
    "custom_id an object": (LINE[:-1].replace(b'"a"', b"{}"), "invalid_type"),
    "body a text": (
        b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":"x"}',
        "invalid_type",
    ),
    "absolute url": (line("a", url="http://evil.test/v1/chat/completions")[:-1], "invalid_url"),
    "a url with dots": (line("a", url="/v1/../admin")[:-1], "invalid_url"),
    "a url with a query": (line("a", url="/v1/chat/completions?x=1")[:-1], "invalid_url"),
    "a url without a scheme": (line("a", url="//evil.test/v1/chat/completions")[:-1], "invalid_url"),
    "a url with a user": (line("a", url="@evil.test")[:-1], "invalid_url"),
    "a url with a line break": (
        line("a", url="/v1/chat/completions\r\nHost: evil.test")[:-1],
        "invalid_url",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_named_with_its_number(server, name):
    bad, code = LINES[name]
    first = line("first", long="x" * 100_000)  # the upload itself checks only the beginning
    found = errors_of(server, first + b"\r\n" + bad + b"\n" + line("last"))
    assert [number for number, _ in found] == [3]
    assert code is None or found == [(3, code)]


def test_bom_crlf_blank_lines_and_a_missing_last_line_break_are_accepted(server):
    content = b"\xef\xbb\xbf\r\n \t\n" + line("a").replace(b"\n", b"\r\n") + b"\n\n" + line("b").rstrip(b"\n")
    batch = server.run(content)
    assert batch.status == "completed"
    assert [row["custom_id"] for row in server.rows(batch.output_file_id)] == ["a", "b"]
    wrong = content + b"\n" + line("c").replace(b'"POST"', b'"GET"')
    assert errors_of(server, wrong) == [(7, "invalid_value")]


def test_unicode_separators_do_not_split_lines(server):
    raw = LINE.replace(b'"a"', '"x\u2028y\u0085z"'.encode())
    escaped = LINE.replace(b'"a"', b'"\\u001c\\u000b"')
    batch = server.run(raw + escaped)
    assert batch.status == "completed"
    rows = server.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == ["x\u2028y\u0085z", "\x1c\x0b"]


def test_custom_ids_are_compared_after_decoding(server):
    same = LINE + LINE.replace(b'"a"', b'"\\u0061"')
    assert errors_of(server, same) == [(2, "duplicate_custom_id")]


def test_50_001_lines_are_refused_and_50_000_are_not(server, jsonl):
    assert errors_of(server, jsonl(50_001)) == [(None, "too_many_tasks")]
    client = server.client()
    uploaded = client.files.create(file=jsonl(50_000), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).request_counts.total == 50_000)
    client.batches.cancel(batch.id)
    assert ended(client, batch.id).status == "cancelled"


def test_a_line_of_110_megabytes_is_an_error_at_that_line(serve):
    server = serve("--emulate")
    long = LINE[:-6] + b"x" * 110_000_000 + b'"}]}}\n'
    assert errors_of(server, long + line("last")) == [(1, "line_too_long")]
    for pid in [server.process.pid, *server.children()]:
        assert _peak_mb(pid) < 200


def _peak_mb(pid: int) -> float:
    for status_line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if status_line.startswith("VmHWM"):
            return int(status_line.split()[1]) / 1_024
    raise AssertionError(f"{pid} has no peak")


def test_a_hundred_bad_lines_are_listed_and_the_rest_is_counted(server):
    batch = server.run(line("first") + b"{\n" * 5_000)
    assert [error.line for error in batch.errors.data] == [*range(2, 102), None]
    assert batch.errors.data[-1].code == "too_many_errors"
    assert "4900" in batch.errors.data[-1].message


# --- requests to the model server ---------------------------------------------------------------------


def test_a_line_cannot_choose_the_host(stubbed, stub):
    """The url of a line is a path, and its body may name any host. Requests go to the upstream only."""
    server, upstream = stubbed
    elsewhere = stub()
    urls = [
        elsewhere.url,
        f"http://{elsewhere.host}{CHAT}",
        f"//{elsewhere.host}{CHAT}",
        f"@{elsewhere.host}{CHAT}",
    ]
    for url in urls:
        assert errors_of(server, line("a", url=url)) == [(1, "invalid_url")]
        create = json.dumps({"input_file_id": "file-a", "endpoint": url, "completion_window": "24h"})
        assert server.send("POST", "/v1/batches", create, {"Content-Type": "application/json"}).status == 400
    assert upstream.requests == []
    body = json.loads(LINE)["body"] | {"base_url": elsewhere.url, "image_url": elsewhere.url}
    batch = server.run(line("a", body=body, host=elsewhere.host, base_url=elsewhere.url))
    assert batch.status == "completed"
    (request,) = upstream.requests
    assert (request[0], request[1]["host"]) == (CHAT, upstream.host)
    assert elsewhere.requests == []


BODY = (
    rb'{"model": "m", "z": 9007199254740993, "a": 1.0, "big": 1e400, "n": -0, "twice": 1, "twice": 2, '
    rb'"messages": [{"role": "user", "content": "\ud83d \u00e9 '
    + "é\u2028".encode()
    + rb'\u0000"}], "" : {} }'
)
ANSWER = (
    rb'{"z": 12345678901234567890123, "f": 1.0, "e": 1E-7, "s": "'
    + "é\u2028\u0085😀".encode()
    + rb'\ud83d", '
    b'\n "choices": [] , "twice": 1, "twice": 2}'
)


def test_bodies_are_sent_unchanged(stubbed):
    server, upstream = stubbed
    upstream.answer = ANSWER
    content = (
        b'{"extra": 1, "body": '
        + BODY
        + b', "url": "/v1/chat/completions", "custom_id": "a", "method": "POST"}'
    )
    batch = server.run(content)
    assert batch.status == "completed", batch
    ((path, headers, body),) = upstream.requests
    assert (path, body) == (CHAT, BODY)
    assert headers["authorization"] == "Bearer sk-upstream"
    written = server.client().files.content(batch.output_file_id).content
    expected = ANSWER.replace(b"\n", b" ")
    for letter in "é\u2028\u0085😀":
        expected = expected.replace(letter.encode(), json.dumps(letter)[1:-1].encode())
    assert b'"body": ' + expected + b'}, "error": null}\n' in written
    assert written.count(b"\n") == 1


def test_an_answer_that_is_not_json_becomes_an_error_and_never_a_broken_line(stubbed):
    server, upstream = stubbed
    for answer in [b"<html>502</html>", b"", b'{"a": NaN}', b"{", b'{"a": "\xff"}', b"[" * 100_000]:
        upstream.answer = answer
        batch = server.run(line("a") + line("b"))
        assert (batch.status, batch.output_file_id) == ("completed", None)
        assert batch.request_counts.to_dict() == {"total": 2, "completed": 0, "failed": 2}
        for row in server.rows(batch.error_file_id):
            assert row["response"]["body"]["error"]["code"] == "invalid_upstream_answer"
