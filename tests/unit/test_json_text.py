"""What of JSON as text the tests of input and output lines do not reach."""

import pytest

from nightmill.core import json_text


def test_a_text_that_is_not_utf_8_does_not_become_an_ascii_line():
    with pytest.raises(UnicodeDecodeError):
        json_text.one_ascii_line(b'"\xff"')


def test_the_escape_of_json_text_is_for_encoding_only():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "nightmill.json-escaped")
