"""Rows become request lines; output lines are matched to their requests."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.client.answers import Answer, endpoint_of, joined, write_rows
from nightmill.errors import RequestError

CHAT = "/v1/chat/completions"


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(custom_id: str) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m", "n": custom_id}}


def ok(custom_id: str) -> dict:
    response = {"status_code": 200, "request_id": "r", "body": {"answer": custom_id}}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": None}


def test_bodies_become_request_lines_with_generated_ids(tmp_path):
    rows = [{"messages": [], "model": "m"}, {"messages": ["\ud83d"]}]
    endpoint = write_rows(rows, tmp_path / "in.jsonl", endpoint=None, model="default")
    assert endpoint == CHAT
    assert written(tmp_path / "in.jsonl") == [
        {"custom_id": "request-1", "method": "POST", "url": CHAT, "body": {"messages": [], "model": "m"}},
        {
            "custom_id": "request-2",
            "method": "POST",
            "url": CHAT,
            "body": {"messages": ["\ud83d"], "model": "default"},
        },
    ]


def test_request_lines_are_kept_and_determine_the_endpoint(tmp_path):
    line = {"custom_id": "mine", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
    assert write_rows([line], tmp_path / "in.jsonl", endpoint=None, model=None) == "/v1/embeddings"
    assert written(tmp_path / "in.jsonl") == [line]


def test_rows_are_taken_one_by_one(tmp_path):
    taken = []

    def rows():
        for number in range(3):
            taken.append(number)
            yield {"messages": [], "model": "m"}

    write_rows(rows(), tmp_path / "in.jsonl", endpoint=None, model=None)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "endpoint", "message"),
    [
        ([], None, "no rows"),
        ([], CHAT, "no rows"),
        ([{"input": "x"}], None, "pass endpoint="),
        ([{"messages": [], "top_p": float("nan")}], None, "row 1 can't be written as JSON"),
        ([{"messages": []}, {"messages": [object()]}], None, "row 2 can't be written as JSON"),
    ],
)
def test_invalid_rows_are_refused(tmp_path, rows, endpoint, message):
    with pytest.raises(RequestError, match=message):
        write_rows(rows, tmp_path / "in.jsonl", endpoint=endpoint, model=None)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_answers_are_in_the_order_of_the_requests(tmp_path_factory, order, failed, missing):
    folder = tmp_path_factory.mktemp("joined")
    requests = write_lines(folder / "in.jsonl", [request(str(n)) for n in range(12)])
    lines = [ok(str(n)) for n in order if n not in missing]
    output = write_lines(
        folder / "out.jsonl", [line for line in lines if int(line["custom_id"]) not in failed]
    )
    errors = write_lines(folder / "err.jsonl", [line for line in lines if int(line["custom_id"]) in failed])
    answers = list(joined(requests, output, errors))
    assert [answer.custom_id for answer in answers] == [str(n) for n in range(12)]
    for number, answer in enumerate(answers):
        assert answer.request == {"model": "m", "n": str(number)}
        assert answer.body == (None if number in missing else {"answer": str(number)})
        assert answer.is_ok is (number not in missing)


def test_answers_in_order_are_not_held_in_memory(tmp_path):
    from nightmill.client import answers as module

    requests = write_lines(tmp_path / "in.jsonl", [request(str(n)) for n in range(50)])
    output = write_lines(tmp_path / "out.jsonl", [ok(str(n)) for n in range(50) if n % 3])
    errors = write_lines(tmp_path / "err.jsonl", [ok(str(n)) for n in range(50) if not n % 3])
    with module._Answers([output, errors]) as read:
        for number in range(50):
            assert read.take(str(number))["custom_id"] == str(number)
            assert not read._ahead
    assert len(list(joined(requests, output, errors))) == 50


def test_an_http_error_and_an_unsent_line_have_an_error_message(tmp_path):
    requests = write_lines(tmp_path / "in.jsonl", [request("a"), request("b")])
    refused = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    expired = {"code": "batch_expired", "message": "late"}
    errors = write_lines(
        tmp_path / "err.jsonl",
        [
            {
                "id": "1",
                "custom_id": "a",
                "response": {"status_code": 400, "request_id": "r", "body": {"error": refused}},
                "error": None,
            },
            {"id": "2", "custom_id": "b", "response": None, "error": expired},
        ],
    )
    first, second = joined(requests, errors)
    assert (first.status_code, first.error, first.is_ok) == (400, refused, False)
    assert second == Answer(
        custom_id="b", request={"model": "m", "n": "b"}, status_code=None, body=None, error=expired
    )


def test_an_unanswered_request_has_neither_status_nor_error(tmp_path):
    requests = write_lines(tmp_path / "in.jsonl", [request("a")])
    (answer,) = joined(requests)
    assert (answer.status_code, answer.body, answer.error) == (None, None, None)


def test_unicode_line_separators_inside_lines_do_not_split_them(tmp_path):
    requests = write_lines(tmp_path / "in.jsonl", [request("a")])
    output = tmp_path / "out.jsonl"
    text = json.dumps(ok("a") | {"id": "x\u2028\u2029\x85y"}, ensure_ascii=False)
    output.write_bytes(b"\r\n" + text.encode() + b"\r\n\n")
    (answer,) = joined(requests, output)
    assert answer.is_ok


def test_request_files_may_have_a_bom_blank_lines_and_no_final_newline(tmp_path):
    requests = tmp_path / "in.jsonl"
    lines = json.dumps(request("a")) + "\r\n \n" + json.dumps(request("b"))
    requests.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [answer.custom_id for answer in joined(requests)] == ["a", "b"]
    assert endpoint_of(requests) == CHAT


@pytest.mark.parametrize("text", [b"", b"\n\n", b"[1]\n", b"{\n", b"{}\n", b"\x1f\x8b\x00\n"])
def test_the_error_for_a_file_without_an_endpoint_says_what_to_do(tmp_path, text):
    path = tmp_path / "in.jsonl"
    path.write_bytes(text)
    with pytest.raises(RequestError, match="--endpoint"):
        endpoint_of(path)


def test_a_thousand_answers_out_of_order_are_matched_to_their_requests(tmp_path):
    requests = write_lines(tmp_path / "in.jsonl", [request(str(n)) for n in range(1000)])
    shuffled = random.Random(7).sample(range(1000), 1000)
    output = write_lines(tmp_path / "out.jsonl", [ok(str(n)) for n in shuffled])
    assert [answer.body["answer"] for answer in joined(requests, output)] == [str(n) for n in range(1000)]
