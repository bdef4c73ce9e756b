"""A 2xx is a success only with a result of its endpoint, and what any other answer reports is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.batch import ENDPOINTS
from nightmill.core.failure import AnswerError
from nightmill.core.output_line import OutputLine, answered
from nightmill.core.request_line import RequestLine
from nightmill.emulator.answers import answer as emulated

LINE = RequestLine(b'"a"', b"{}")
BOM = b"\xef\xbb\xbf"

texts = st.text(st.characters(exclude_categories=()), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["code", "type", "status", "error"]) | texts, inner, max_size=4)
    ),
    max_leaves=12,
)


def answer_to(body: bytes, *, endpoint: str = "/v1/chat/completions", status: int = 200) -> OutputLine:
    return answered(b"batch_req_1", LINE, endpoint=endpoint, status=status, request_id=b'"r-1"', body=body)


def response_in(output: OutputLine) -> dict[str, Any]:
    return json.loads(output.text)["response"]


def error_of(output: OutputLine) -> AnswerError:
    assert output.is_error
    assert output.usage is None
    assert output.error is not None
    return output.error


RESULTS = {
    "/v1/responses": {"output": []},
    "/v1/chat/completions": {"choices": [{"index": 0}]},
    "/v1/embeddings": {"data": []},
    "/v1/completions": {"choices": [{"text": ""}]},
    "/v1/moderations": {"results": [{"flagged": False}]},
    "/v1/images/generations": {"data": [{"url": "x"}]},
    "/v1/images/edits": {"data": [{"url": "x"}]},
    "/v1/videos": {"id": "video_1"},
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_emulated_answer_of_every_endpoint_is_a_result(endpoint: str):
    request = {"model": "m", "input": "a", "prompt": "a", "image": "x", "messages": [{}]}
    answer = emulated(endpoint, json.dumps(request).encode())
    assert answer.status == 200
    assert not answer_to(answer.body, endpoint=endpoint).is_error


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "rest", [{}, {"error": None}, {"error": {"code": 500}}, {"usage": 1}, {"a": "\ud83d"}]
)
def test_a_2xx_is_a_success_only_with_the_result_of_its_endpoint(endpoint: str, rest: dict[str, Any]):
    result = RESULTS[endpoint]
    assert not answer_to(json.dumps({**rest, **result}).encode(), endpoint=endpoint).is_error
    others = {name: value for part in RESULTS.values() for name, value in part.items() if name not in result}
    for incomplete in (others, {**others, **dict.fromkeys(result)}):
        assert answer_to(json.dumps({**rest, **incomplete}).encode(), endpoint=endpoint).is_error


@pytest.mark.parametrize("status", ["failed", "incomplete"])
def test_a_response_whose_own_status_is_not_completed_is_a_result(status: str):
    body = {"object": "response", "status": status, "error": {"code": "server_error"}, "output": []}
    output = answer_to(json.dumps(body).encode(), endpoint="/v1/responses")
    assert not output.is_error
    assert response_in(output)["body"] == body


@pytest.mark.parametrize(("first", "second"), [("null", "[]"), ("[]", "null")])
@pytest.mark.parametrize("rest", ["", ', "lone": "\\ud83d"'])
def test_of_two_results_the_last_decides(first: str, second: str, rest: str):
    output = answer_to(f'{{"choices": {first}, "choices": {second}{rest}}}'.encode())
    assert output.is_error == (second == "null")


ERRORS: list[tuple[Any, int, str | None]] = [
    ({"error": {"message": "m", "type": "server_error", "code": "overloaded"}}, 502, "overloaded"),
    ({"error": {"message": "m", "type": "server_error", "code": None}}, 502, "server_error"),
    ({"error": {"message": "m", "code": 429}}, 429, None),
    ({"error": {"message": "m", "code": 400, "type": "BadRequestError"}}, 400, "BadRequestError"),
    ({"error": {"code": 503, "status": "UNAVAILABLE"}}, 503, None),
    ({"error": {"code": "insufficient_quota", "status": 429}}, 429, "insufficient_quota"),
    ({"error": {"code": 399}}, 502, None),
    ({"error": {"code": 600}}, 502, None),
    ({"error": {"code": 429.0}}, 502, None),
    ({"error": {"code": True}}, 502, None),
    ({"error": {"code": 10**400}}, 502, None),
    ({"error": {"code": "x" * 64}}, 502, "x" * 64),
    ({"error": {"code": "x" * 65, "type": "t"}}, 502, "t"),
    ({"error": {"code": "two words", "type": "\n"}}, 502, None),
    ({"error": {"code": "\ud83d", "type": {"code": "deep"}}}, 502, None),
    ({"error": "the model was not found"}, 502, None),
    ({"error": "busy", "code": 503, "type": "overloaded"}, 503, "overloaded"),
    ({"error": []}, 502, None),
    ({"error": False}, 502, None),
    ({"error": {}, "choices": None}, 502, None),
    ({"object": "error", "message": "m", "type": "NotFoundError", "code": 404}, 404, "NotFoundError"),
    ({"object": "error"}, 502, None),
]


@pytest.mark.parametrize(("body", "counts_as", "code"), ERRORS)
def test_a_2xx_with_an_error_counts_as_that_error(body: dict[str, Any], counts_as: int, code: str | None):
    for status in (200, 201):
        output = answer_to(json.dumps(body).encode(), status=status)
        assert error_of(output) == AnswerError(counts_as, code, is_json=True)
        response = response_in(output)
        assert (response["status_code"], response["body"]) == (counts_as, body)


@pytest.mark.parametrize(("body", "counts_as", "code"), ERRORS)
@pytest.mark.parametrize("status", [302, 400, 429, 500])
def test_an_error_keeps_its_own_status_and_body(
    body: dict[str, Any], counts_as: int, code: str | None, status: int
):
    output = answer_to(json.dumps(body).encode(), status=status)
    assert error_of(output) == AnswerError(status, code, is_json=True)
    response = response_in(output)
    assert (response["status_code"], response["body"]) == (status, body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"detail": "Not Found"}, None),
        ({"detail": [{"loc": ["body"], "type": "missing"}]}, None),
        ({"detail": {"code": "no_such_model"}}, "no_such_model"),
        ({"detail": "Not Found", "code": "not_found"}, "not_found"),
        ([{"error": {"code": "in_a_list"}}], None),
        ("text", None),
        (7, None),
        (None, None),
        ({}, None),
    ],
)
def test_an_error_of_another_shape_is_read_too(body: Any, code: str | None):
    output = answer_to(json.dumps(body).encode(), status=404)
    assert error_of(output) == AnswerError(404, code, is_json=True)
    assert response_in(output)["body"] == body


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ([1, 2, 3], "was not a JSON object"),
        ("secret", "was not a JSON object"),
        (7, "was not a JSON object"),
        (None, "was not a JSON object"),
        ({}, "had no 'choices'"),
        ({"choices": None, "error": None}, "had no 'choices'"),
        ({"detail": "secret"}, "had no 'choices'"),
        ({"code": 429, "object": "list", "secret": {"error": {"code": 429}}}, "had no 'choices'"),
    ],
)
def test_a_2xx_with_neither_result_nor_error_becomes_an_error_object(body: Any, what: str):
    output = answer_to(json.dumps(body, indent=1).encode(), status=201)
    assert error_of(output) == AnswerError(502, "invalid_upstream_answer", is_json=True)
    response = response_in(output)
    assert response["status_code"] == 502
    assert response["body"]["error"] == {
        "message": f"The upstream's answer (reported here with status 502) {what}.",
        "type": "server_error",
        "param": None,
        "code": "invalid_upstream_answer",
    }
    assert b"secret" not in output.text


@given(body=st.dictionaries(st.sampled_from(["error", "code", "type", "detail", "object"]), values))
def test_no_error_is_too_irregular_to_be_read(body: dict[str, Any]):
    for status in (200, 404):
        output = answer_to(BOM + json.dumps(body).encode(), status=status)
        response_in(output)
        error = error_of(output)
        assert error.status == status or (status == 200 and 400 <= error.status < 600)
