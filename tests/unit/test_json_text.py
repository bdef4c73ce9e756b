"""What of JSON as text the tests of input and output lines do not reach."""

import pytest

from nightmill.core import json_text


def test_a_text_that_is_not_utf_8_does_not_become_an_ascii_line():
    with pytest.raises(UnicodeDecodeError):
        json_text.one_ascii_line(b'"\xff"')


def test_the_escape_of_json_text_is_for_encoding_only():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "nightmill.json-escaped")


@pytest.mark.parametrize(
    "body", [b'{"a": 1, "b" : [{"b": 2}], "a":"\\ud800"}', b'{"a":{},"b":\n[{"b": 2}]\t}']
)
def test_the_spans_of_members_are_those_of_their_values(body: bytes):
    found = {name: body[start:end] for name, start, end in json_text.member_spans(body)}
    assert found["b"] == b'[{"b": 2}]'
    assert json_text.members(body, "a", "b", "c") == found


def test_spans_of_members_have_the_order_of_the_text_and_every_duplicate():
    body = b'{"b": 1, "a": "x", "\\u0062": [2]}'
    spans = [(name, body[start:end]) for name, start, end in json_text.member_spans(body)]
    assert spans == [("b", b"1"), ("a", b'"x"'), ("b", b"[2]")]


def test_an_object_that_is_not_closed_has_no_span():
    with pytest.raises(json_text.NotJsonError):
        list(json_text.member_spans(b'{"a": [1, {}'))
