"""Request lines are cut and output lines written without touching a byte that means something."""

import json
import math
import tracemalloc
from keyword import iskeyword
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core import json_text
from nightmill.core.batch import Usage
from nightmill.core.failure import AnswerError
from nightmill.core.json_text import ascii_string
from nightmill.core.output_line import OutputLine, answered, is_json, unanswered
from nightmill.core.request_line import RequestLine, slice_line

LINE = RequestLine(b'"a"', b"{}")
CHAT_URL = "/v1/chat/completions"
BOM = b"\xef\xbb\xbf"


def without_choices(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name != "choices"}


# Any code point, lone surrogates included: JSON can carry them when they are escaped.
texts = st.text(st.characters(exclude_categories=()), max_size=12)
integers = st.integers(min_value=-(10**30), max_value=10**30)
values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, values, max_size=4)
results = st.builds(
    lambda before, choices, after: {**before, "choices": choices, **after},
    *(objects, values.filter(lambda choices: choices is not None), objects.map(without_choices)),
)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r : ")])


@st.composite
def json_bytes(draw: st.DrawFn, value: st.SearchStrategy[Any] = values) -> bytes:
    drawn = draw(value)
    indent = draw(st.sampled_from([None, 1]))
    escaped = json.dumps(drawn, separators=draw(separators), indent=indent)
    try:
        raw = json.dumps(drawn, separators=draw(separators), indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate has no other form
        return escaped.encode()
    return draw(st.sampled_from([escaped.encode(), raw]))


def as_read(text: bytes) -> Any:
    """What a JSON text says, with numbers as they are spelt and all members in order."""
    return json.loads(text, parse_float=str, parse_int=str, object_pairs_hook=lambda pairs: ("object", pairs))


def row_of(output: OutputLine) -> dict[str, Any]:
    assert output.text.isascii()
    assert output.text.endswith(b"\n")
    assert len(output.text.decode().splitlines()) == 1
    assert b"\t" not in output.text
    return json.loads(output.text)


def answer_to(
    body: bytes, *, endpoint: str = CHAT_URL, status: int = 200, line: RequestLine = LINE
) -> OutputLine:
    return answered(b"batch_req_1", line, endpoint=endpoint, status=status, request_id=b'"r-1"', body=body)


def error_of(output: OutputLine) -> AnswerError:
    assert output.is_error
    assert output.usage is None
    assert output.error is not None
    return output.error


@given(
    body=json_bytes(objects),
    custom_id=texts,
    head=st.sampled_from([b"", BOM]),
    tail=st.sampled_from([b"", b"\r"]),
)
def test_a_body_is_cut_out_byte_for_byte(body: bytes, custom_id: str, head: bytes, tail: bytes):
    custom_id_json = json.dumps(custom_id).encode()
    one_line = body.replace(b"\n", b" ")
    raw = b'{"custom_id":%b ,"method":"POST","url":"/v1/x", "body" : %b }' % (custom_id_json, one_line)
    assert slice_line(head + raw + tail) == RequestLine(custom_id_json, one_line)


@pytest.mark.parametrize("lone", [b"", b'"\\ud83d":1,'])
def test_of_equal_keys_the_last_wins(lone: bytes):
    raw = b'{%b"body":{"a":1},"custom_id":7,"cust\\u006fm_id":"b","body":{"b":1,"b":2}}' % lone
    assert slice_line(raw) == RequestLine(b'"b"', b'{"b":1,"b":2}')


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"custom_id":"a"}', b'{"body":{}}', b"nonsense", b'"'])
def test_what_is_no_request_line_is_not_cut(raw: bytes):
    with pytest.raises(ValueError, match="not a request line"):
        slice_line(raw)


def test_a_line_nested_deeper_than_a_parser_follows_is_still_cut():
    body = b'{"a":' * 5_000 + b"1" + b"}" * 5_000
    assert slice_line(b'{"custom_id":"a","body":' + body + b"}").body == body


@given(
    answer=st.tuples(st.sampled_from([200, 201, 299]), json_bytes(results))
    | st.tuples(st.sampled_from([300, 400, 500]), json_bytes()),
    custom_id=texts,
)
def test_an_answer_stands_in_its_row_as_it_was_sent(answer: tuple[int, bytes], custom_id: str):
    status, body = answer
    line = RequestLine(json.dumps(custom_id).encode(), b"{}")
    output = answer_to(body, status=status, line=line)
    row = row_of(output)
    assert list(row) == ["id", "custom_id", "response", "error"]
    assert list(row["response"]) == ["status_code", "request_id", "body"]
    assert (row["id"], row["custom_id"], row["error"]) == ("batch_req_1", custom_id, None)
    assert row["response"]["request_id"] == "r-1"
    assert row["response"]["status_code"] == (200 if status < 300 else status)
    assert output.is_error == (status >= 300)
    name, members = as_read(output.text)
    assert name == "object"
    assert dict(dict(members)["response"][1])["body"] == as_read(body)


@given(body=json_bytes(results))
def test_an_ascii_answer_on_one_line_is_not_changed_at_all(body: bytes):
    if body.isascii() and not {9, 10, 13} & set(body):
        assert b'"body": ' + body + b'}, "error": null}\n' in answer_to(body).text


def test_an_answer_is_escaped_as_openai_does():
    body = '{"choices":"é\u2028\u0085😀\x7f", "n":1.0}'.encode()
    escaped = rb'{"choices":"\u00e9\u2028\u0085\ud83d\ude00' + b"\x7f" + b'", "n":1.0}'
    assert answer_to(body).text == (
        b'{"id": "batch_req_1", "custom_id": "a", "response": '
        b'{"status_code": 200, "request_id": "r-1", "body": ' + escaped + b'}, "error": null}\n'
    )


def test_a_custom_id_beyond_ascii_is_escaped_in_the_row():
    output = answer_to(b"{}", line=RequestLine('"naïve"'.encode(), b"{}"))
    assert b'"custom_id": "na\\u00efve"' in output.text


NOT_JSON = [
    b"",
    b"<html>\n<body>502</body></html>",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": 1,}',
    b'{"a": "\xff"}',
    b'{"a": "\xed\xa0\xbd"}',
    b'{"a": "\n"}',
    b"{'a': 1}",
    b'{"a": 1} {"b": 2}',
    b'{"a": "\\ud83',
    b"\x00",
    b"data: {}\n\ndata: [DONE]\n\n",
    b"[" * 100_000 + b"]" * 100_000,
]


@pytest.mark.parametrize("body", NOT_JSON)
@pytest.mark.parametrize(("status", "reported"), [(200, 502), (302, 502), (404, 404), (503, 503)])
def test_an_answer_that_is_not_json_becomes_an_error_object(body: bytes, status: int, reported: int):
    assert not is_json(body)
    output = answer_to(body, status=status)
    code = "invalid_upstream_answer" if status == 200 else None
    assert error_of(output) == AnswerError(502 if status == 200 else status, code, is_json=False)
    response = row_of(output)["response"]
    assert response["status_code"] == reported
    error = response["body"]["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "invalid_upstream_answer")


@given(json_bytes())
def test_json_is_known_as_json(body: bytes):
    assert is_json(body)
    assert is_json(BOM + body)


@given(st.binary(max_size=20) | json_bytes().flatmap(lambda text: st.permutations(list(text)).map(bytes)))
def test_whatever_comes_back_the_row_is_one_line_of_json(body: bytes):
    row_of(answer_to(body))


CHAT = {
    "prompt_tokens": 31,
    "completion_tokens": 52,
    "total_tokens": 83,
    "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 0},
}
RESPONSES = {
    "input_tokens": 31,
    "input_tokens_details": {"cached_tokens": 16},
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 83,
}
FULL = Usage(31, 16, 52, 40, 83)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (CHAT, FULL),
        (RESPONSES, FULL),
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0, 0, 0, 8)),
        ({"prompt_tokens": 8, "completion_tokens": 2}, Usage(8, 0, 2, 0, 10)),
        ({**CHAT, "prompt_tokens_details": None, "completion_tokens_details": None}, Usage(31, 0, 52, 0, 83)),
        ({**CHAT, "completion_tokens_details": {"reasoning_tokens": None}}, Usage(31, 16, 52, 0, 83)),
        ({**CHAT, "prompt_tokens_details": "none"}, Usage(31, 0, 52, 40, 83)),
        ({**CHAT, "prompt_tokens_details": {"cached_tokens": "16"}}, Usage(31, 0, 52, 40, 83)),
        ({**CHAT, "prompt_tokens": -5, "completion_tokens": True}, Usage(0, 16, 0, 40, 83)),
        ({**CHAT, "total_tokens": 2**70}, Usage(31, 16, 52, 40, 83)),
        ({"prompt_tokens": "many"}, Usage()),
        (None, None),
        ("odd", None),
        ([1], None),
        (7, None),
    ],
)
def test_usage_is_read_and_an_odd_one_harms_nothing(usage: Any, expected: Usage | None):
    for text in ({"choices": [], "usage": usage}, {"choices": "\ud83d", "usage": usage}):
        output = answer_to(json.dumps(text).encode())
        assert not output.is_error
        assert output.usage == expected


@given(usage=values, rest=results)
def test_no_usage_makes_an_answer_bad(usage: Any, rest: dict[str, Any]):
    output = answer_to(json.dumps({**rest, "usage": usage}).encode())
    assert not output.is_error


def test_a_usage_with_a_number_beyond_every_range_harms_nothing():
    output = answer_to(b'{"choices": [], "usage": {"total_tokens": 1e999}}')
    assert (output.is_error, output.usage) == (False, None)


def test_the_usage_of_an_error_does_not_count():
    assert answer_to(json.dumps({"choices": [], "usage": CHAT}).encode(), status=500).usage is None


def test_a_request_id_can_hold_anything():
    request_id = ascii_string('"}\n\u2028é')
    output = answered(b"i", LINE, endpoint=CHAT_URL, status=200, request_id=request_id, body=b"{}")
    assert row_of(output)["response"]["request_id"] == '"}\n\u2028é'


def test_a_line_without_an_answer_has_a_null_response():
    output = unanswered(b"batch_req_1", LINE, code="batch_expired", message='too "late" – é')
    assert output.is_error
    assert output.usage is None
    assert output.text == (
        b'{"id": "batch_req_1", "custom_id": "a", "response": null, "error": {"code": "batch_expired", '
        b'"message": "too \\"late\\" \\u2013 \\u00e9"}}\n'
    )


@given(objects, separators)
def test_members_found_token_by_token_are_those_msgspec_finds(value: dict[str, Any], spaces: tuple[str, str]):
    names = tuple(name for name in value if name.isalpha() and name.isascii() and not iskeyword(name))
    text = json.dumps(value, separators=spaces).encode()
    by_token = {name: text[start:end] for name, start, end in json_text.member_spans(text)}
    assert {name: json.loads(found) for name, found in by_token.items()} == value
    assert json_text.members(text, *names) == {name: by_token[name] for name in names}


@given(st.lists(values, max_size=6))
def test_elements_of_an_array_are_counted(value: list[Any]):
    assert json_text.elements(b" " + json.dumps(value).encode()) == len(value)


def depth_of(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case _:
            return 0


@given(values)
def test_depth_counts_brackets_outside_strings(value: Any):
    assert json_text.depth(json.dumps(value).encode()) == depth_of(value)


@given(json_bytes() | st.binary(max_size=12) | st.text('{}[]",:\\ud83e0-.tn ', max_size=12).map(str.encode))
def test_validity_is_that_of_the_standard_library_without_its_extras(text: bytes):
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text.decode(), parse_constant=refuse)
    except ValueError:
        is_valid = False
    else:
        is_valid = True
    assert is_json(text) == (is_valid or (text.startswith(BOM) and is_json(text[3:])))


def test_numbers_no_float_can_hold_are_fine():
    numbers = b'{"a": 1e400, "b": -0, "c": 123456789012345678901234567890, "choices": 1.0}'
    output = answer_to(numbers)
    assert not output.is_error
    assert math.isinf(json.loads(output.text)["response"]["body"]["a"])
    assert numbers in output.text


@pytest.mark.parametrize("piece", [rb"\ud83d", rb"\ud83d\"", '"é",'.encode(), rb'","\ud83d'])
def test_a_huge_text_of_oddities_costs_no_more_than_a_few_copies_of_itself(piece: bytes):
    text = b'["' + piece * (1_200_000 // len(piece)) + b'"]'
    tracemalloc.start()
    is_json(text)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 5 * len(text)
