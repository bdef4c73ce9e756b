"""What one request line has to keep, with OpenAI's codes and texts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.batch import ENDPOINTS, LineError
from nightmill.core.request_line import slice_line
from nightmill.validation import InputRules, LineChecker

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
LONE = "\ud83d"
ABSENT = object()


def line(endpoint: str = CHAT, **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
    whole = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body, **changes}
    return {name: value for name, value in whole.items() if value is not ABSENT}


def line_with_body(endpoint: str = CHAT, **changes: Any) -> dict[str, Any]:
    whole = line(endpoint)
    body = {**whole["body"], **changes}
    whole["body"] = {name: value for name, value in body.items() if value is not ABSENT}
    return whole


def check(row: Any, **rules: Any) -> str | LineError:
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    checker = LineChecker(InputRules(**{"endpoint": CHAT, **rules}))
    checker.check(json.dumps(line(checker._rules.endpoint)).encode(), 6)  # now the quick look knows the model
    return checker.check(raw, 7)


def refusal(row: Any, **rules: Any) -> tuple[str, str, str | None]:
    error = check(row, **rules)
    assert isinstance(error, LineError)
    assert error.line == 7
    return error.code, error.message, error.param


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_good_line_passes_at_every_endpoint(endpoint: str):
    assert check(line(endpoint), endpoint=endpoint) == "a"


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n", b"  \t\r\n"])
def test_line_breaks_and_spaces_around_a_line_are_fine(tail: bytes):
    assert check(b" " + json.dumps(line()).encode() + tail) == "a"


@pytest.mark.parametrize("text", ["\u2028", "\x85", "\x0b", "\x1c", "\x1e", "é", "😀", LONE, "\x00", "\x7f"])
def test_any_character_may_be_in_a_custom_id(text: str):
    assert check(line(custom_id=text)) == text


@pytest.mark.parametrize("text", ["\u2028", "\x85", "é", "😀", "\x7f"])
def test_what_may_stand_unescaped_in_a_string_may(text: str):
    assert check(json.dumps(line(custom_id=text), ensure_ascii=False).encode()) == text


def test_a_custom_id_is_what_its_text_decodes_to():
    raw = json.dumps(line()).encode().replace(b'"a"', b'"\\u0061"')
    assert check(raw) == "a"


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        b"{",
        json.dumps(line()).encode()[:-1],
        json.dumps(line()).encode() * 2,
        json.dumps(line()).encode().replace(b'"hi"', b"NaN"),
        json.dumps(line()).encode().replace(b'"hi"', b'"h\x00i"'),
        json.dumps(line()).encode() + b"\x00",
        json.dumps(line()).encode().replace(b'"hi"', b'"h\ti"'),
        b"\xef\xbb\xbf" + json.dumps(line()).encode(),
    ],
)
def test_a_line_that_is_not_json(raw: bytes):
    assert refusal(raw) == ("invalid_json_line", "This line is not parseable as valid JSON.", None)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xc0\xaf"])
def test_a_line_that_is_not_utf_8(bad: bytes):
    raw = json.dumps(line()).encode().replace(b'"hi"', b'"h' + bad + b'i"')
    assert refusal(raw) == ("invalid_json_line", "This line is not valid UTF-8.", None)


@pytest.mark.parametrize(("raw", "kind"), [(b"[]", "an array"), (b"5", "an integer"), (b"null\n", "null")])
def test_a_line_that_is_not_an_object(raw: bytes, kind: str):
    message = f"Invalid type for this line: expected an object, but got {kind} instead."
    assert refusal(raw) == ("invalid_type", message, None)


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_a_missing_member(name: str):
    expected = ("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    assert refusal(line(**{name: ABSENT})) == expected


@pytest.mark.parametrize("name", ["custom_id", "method", "url"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5, "an integer"),
        (5.5, "a decimal"),
        (None, "null"),
        (True, "a boolean"),
        ({}, "an object"),
        ([], "an array"),
    ],
)
def test_a_member_that_is_not_a_string(name: str, value: Any, kind: str):
    message = f"Invalid type for '{name}': expected a string, but got {kind} instead."
    assert refusal(line(**{name: value})) == ("invalid_type", message, name)


@pytest.mark.parametrize(("value", "kind"), [("{}", "a string"), (None, "null"), ([], "an array")])
def test_a_body_that_is_not_an_object(value: Any, kind: str):
    message = f"Invalid type for 'body': expected an object, but got {kind} instead."
    assert refusal(line(body=value)) == ("invalid_type", message, "body")


@pytest.mark.parametrize("method", ["GET", "post", ""])
def test_another_method(method: str):
    expected = ("invalid_value", f"Invalid value: '{method}'. Value must be 'POST'.", "method")
    assert refusal(line(method=method)) == expected


@pytest.mark.parametrize(
    "url", ["/v1/embeddings", "http://10.0.0.1/v1/chat/completions", "/v1/chat/completions/", ""]
)
def test_another_url(url: str):
    message = "The URL provided for this request does not match the batch endpoint."
    assert refusal(line(url=url)) == ("invalid_url", message, "url")


@pytest.mark.parametrize(
    ("endpoint", "family"),
    [(CHAT, "Chat Completions"), ("/v1/responses", "Responses"), ("/v1/images/edits", "Image Edits")],
)
def test_streaming_is_refused(endpoint: str, family: str):
    message = f"{family}: Streaming is not supported in the Batch API."
    expected = ("streaming_unsupported", message, "body.stream")
    assert refusal(line_with_body(endpoint, stream=True), endpoint=endpoint) == expected


@pytest.mark.parametrize("stream", [False, None])
def test_no_streaming_may_be_said_aloud(stream: Any):
    assert check(line_with_body(stream=stream)) == "a"


@pytest.mark.parametrize("model", [ABSENT, None, ""])
@pytest.mark.parametrize("endpoint", [CHAT, EMBEDDINGS, "/v1/completions", "/v1/responses"])
def test_a_missing_model(endpoint: str, model: Any):
    expected = ("invalid_request", "Model parameter is required.", "body.model")
    assert refusal(line_with_body(endpoint, model=model), endpoint=endpoint) == expected


@pytest.mark.parametrize("model", [ABSENT, None, ""])
@pytest.mark.parametrize(
    "endpoint", ["/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos"]
)
def test_some_endpoints_need_no_model(endpoint: str, model: Any):
    assert check(line_with_body(endpoint, model=model), endpoint=endpoint, models=["other"]) == "a"


def test_a_model_that_is_not_a_string():
    message = "Invalid type for 'body.model': expected a string, but got an integer instead."
    assert refusal(line_with_body(model=4)) == ("invalid_type", message, "body.model")


@pytest.mark.parametrize("messages", [ABSENT, None])
def test_missing_messages(messages: Any):
    expected = ("invalid_request", "Messages parameter is required.", "body.messages")
    assert refusal(line_with_body(messages=messages)) == expected


@pytest.mark.parametrize("given_input", [ABSENT, None])
def test_a_missing_embedding_input(given_input: Any):
    expected = ("invalid_request", "Input parameter is required.", "body.input")
    assert refusal(line_with_body(EMBEDDINGS, input=given_input), endpoint=EMBEDDINGS) == expected


@pytest.mark.parametrize(
    "body", [{"messages": "hi"}, {"stream": "yes"}, {"temperature": "hot"}, {"messages": []}]
)
def test_what_only_the_model_server_can_judge_passes(body: dict[str, Any]):
    assert check(line_with_body(**body)) == "a"


def test_a_model_that_is_not_offered():
    expected = ("model_not_found", "The provided model 'm' is not supported by the Batch API.", "body.model")
    assert refusal(line(), models=["other"]) == expected
    assert check(line(), models=["other", "m"]) == "a"


def test_a_model_that_differs_from_the_rest():
    checker = LineChecker(InputRules(endpoint=CHAT))
    rows = [json.dumps(line_with_body(model=model)).encode() for model in ("m", "n", "m")]
    first, second, third = (checker.check(row, number) for number, row in enumerate(rows, start=1))
    assert (first, third) == ("a", "a")
    message = (
        "The model 'n' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model."
    )
    assert second == LineError("mismatched_model", message, "body.model", 2)
    assert checker.models == ["m"]


def test_several_models_by_setting():
    checker = LineChecker(InputRules(endpoint=CHAT, models_per_file=2))
    for number, model in enumerate(["m", "n", "m", "n"]):
        assert checker.check(json.dumps(line_with_body(model=model)).encode(), number) == "a"
    refused = checker.check(json.dumps(line_with_body(model="o")).encode(), 5)
    assert isinstance(refused, LineError)
    assert "at most 2 models" in refused.message


def test_a_line_with_several_faults_has_one_error():
    bad = line(custom_id=ABSENT, method="GET", url="/", body=None)
    assert refusal(bad)[2] == "custom_id"


def nested(levels: int) -> bytes:
    """A line of so many levels: the line and its body are two."""
    inner = levels - 2
    more = b'"more":' + b"[" * inner + b"]" * inner
    return json.dumps(line_with_body(messages="x")).encode()[:-2] + b"," + more + b"}}"


@pytest.mark.parametrize("limit", [3, 11, 12, 13, 200])
def test_nesting_is_bounded_exactly(limit: int):
    assert check(nested(limit), nesting=limit) == "a"
    message = f"This line is nested more than {limit} levels deep."
    for levels in (limit + 1, 5_000, 500_000):
        assert refusal(nested(levels), nesting=limit) == ("nesting_too_deep", message, None)


def test_many_brackets_side_by_side_or_in_strings_are_not_deep():
    assert check(line_with_body(tools=[{"a": [{}]}] * 500, text="[{" * 500), nesting=6) == "a"


def test_what_is_quoted_in_a_message_is_short_and_can_be_sent():
    code, message, _ = refusal(line_with_body(model=LONE + "x" * 100_000), models=["m"])
    assert code == "model_not_found"
    assert len(message) < 300
    message.encode()


@pytest.mark.parametrize(
    ("embedding_input", "count"),
    [
        ("a text", 1),
        (["a", "b", "c"], 3),
        (["a [", "b ]", 'c", "d'], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([[1, 2], "b"], 2),
        ([], 0),
        ([{"text": "a"}, {"text": "b"}], 2),
        (5, 1),
    ],
)
def test_embedding_inputs_are_counted(embedding_input: Any, count: int):
    for lone in ("", LONE):
        checker = LineChecker(InputRules(endpoint=EMBEDDINGS))
        for number in (1, 2):
            row = line_with_body(EMBEDDINGS, input=embedding_input, user=lone)
            assert checker.check(json.dumps(row, indent=1).encode(), number) == "a"
        assert checker.embedding_inputs == 2 * count


odd = st.sampled_from([ABSENT, None, True, False, 1, "", "a", "POST", CHAT, "m", LONE, [], {}])
rows = st.builds(
    lambda outer, inner: {**line_with_body(**inner), **outer},
    st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body", "more"]), odd, max_size=1),
    st.dictionaries(st.sampled_from(["model", "messages", "stream", "more"]), odd, max_size=2),
).map(lambda row: {name: value for name, value in row.items() if value is not ABSENT})


@given(row=rows)
def test_the_quick_look_and_the_second_one_agree(row: dict[str, Any]):
    raw = json.dumps(row).encode()
    quick, slow = (LineChecker(InputRules(endpoint=CHAT)) for _ in range(2))
    quick.check(json.dumps(line()).encode(), 1)  # from here on the quick look knows the model
    slow.check(json.dumps(line()).encode(), 1)
    assert quick.check(raw, 2) == slow._examine(raw, 2)
    assert quick.models == slow.models


@given(row=rows)
def test_what_passes_can_be_cut(row: dict[str, Any]):
    raw = json.dumps(row).encode()
    if isinstance(found := check(raw), str):
        cut = slice_line(raw)
        assert json.loads(cut.custom_id_json) == found
        assert json.loads(cut.body) == row["body"]
