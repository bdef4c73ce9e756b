"""Files that are no request lines are recognised, with the command that converts them."""

import bz2
import gzip
import json
import lzma
import random

import pytest

from nightmill.validation import foreign_format
from nightmill.validation.foreign_format import BEGINNING_BYTES, ForeignKind

LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}\n'
)


@pytest.mark.parametrize(
    ("beginning", "kind", "name", "remedy"),
    [
        (b"", ForeignKind.EMPTY, "empty", "write one request per line"),
        (b"\xef\xbb\xbf \n\n", ForeignKind.EMPTY, "empty", "write one request per line"),
        (gzip.compress(LINE, mtime=0), ForeignKind.COMPRESSED, "gzip data", "nightmill convert f"),
        (bz2.compress(LINE), ForeignKind.COMPRESSED, "bzip2 data", "nightmill convert f"),
        (lzma.compress(LINE), ForeignKind.COMPRESSED, "xz data", "nightmill convert f"),
        (b"PAR1....", ForeignKind.BINARY, "a Parquet file", "write it as CSV or JSON Lines in UTF-8, first"),
        (b"SQLite format 3\x00", ForeignKind.BINARY, "a SQLite database", "in UTF-8, first"),
        (b"%PDF-1.7\n", ForeignKind.BINARY, "a PDF document", "in UTF-8, first"),
        (b"PK\x03\x04" + bytes(26) + b"a.txt", ForeignKind.BINARY, "a zip archive", "in UTF-8, first"),
        (
            b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml",
            ForeignKind.BINARY,
            "an Office document, such as .xlsx",
            "in UTF-8, first",
        ),
        (
            b"Pr\xe9nom: x",
            ForeignKind.BINARY,
            "text that is not UTF-8 (byte 0xe9 at offset 2, in line 1)",
            "in UTF-8, first",
        ),
        (
            b"ab\ncd\x02\xff{\n{\x81\n",
            ForeignKind.BINARY,
            "binary data, not UTF-8 text (byte 0x02 at offset 5, in line 2)",
            "in UTF-8, first",
        ),
        (
            b"plain\x00\n",
            ForeignKind.BINARY,
            "binary data, not UTF-8 text (byte 0x00 at offset 5, in line 1)",
            "in UTF-8, first",
        ),
        (LINE.decode().encode("utf-16"), ForeignKind.ENCODED, "UTF-16 text", "nightmill convert f"),
        (b"[" + LINE.strip() + b"]", ForeignKind.ARRAY, "one JSON array", "nightmill convert f"),
        (b"[\n  " + LINE, ForeignKind.ARRAY, "one JSON array", "nightmill convert f"),
        (
            b'[{"messages": []}]',
            ForeignKind.ARRAY,
            "one JSON array",
            "nightmill convert f --model MODEL",
        ),
        (
            b'["Good?", "Bad?"]',
            ForeignKind.ARRAY,
            "one JSON array",
            "nightmill convert f --model MODEL --prompt '{text}'",
        ),
        (
            b'[{"id": 1, "text": "x"}, {',
            ForeignKind.ARRAY,
            "one JSON array",
            "nightmill convert f --model MODEL --prompt '{text}'",
        ),
        (b'{\n  "custom_id": "a"', ForeignKind.JSON, "JSON over several lines", "nightmill convert f"),
        (
            b'{"model": "m", "messages": []}\n',
            ForeignKind.BODIES,
            "a file of bare request bodies, without custom_id, method and url",
            "nightmill convert f",
        ),
        (
            b'{"review": "x", "stars": 3}\n',
            ForeignKind.OBJECTS,
            "a file of JSON objects that are no requests",
            "nightmill convert f --model MODEL --prompt '{stars}'",
        ),
        (
            b"id,Question\n1,Why?\n",
            ForeignKind.TABLE,
            "a CSV table with the columns id, Question",
            "nightmill convert f --model MODEL --prompt '{Question}'",
        ),
        (
            b"a\tb\n1\t2\n",
            ForeignKind.TABLE,
            "a table with tabs (TSV) with the columns a, b",
            "nightmill convert f --model MODEL --prompt '{b}'",
        ),
        (
            b"Is this good?\nIs it bad?\n",
            ForeignKind.TEXT,
            "plain text",
            "nightmill convert f --model MODEL --prompt '{text}'",
        ),
    ],
)
def test_a_foreign_file_is_named_with_what_to_do(beginning, kind, name, remedy):
    found = foreign_format(beginning)
    assert found is not None
    assert (found.kind, found.name) == (kind, name)
    assert found.refusal("f").startswith(f"f is {name}; ")
    assert found.refusal("f").endswith(remedy)


@pytest.mark.parametrize(
    "beginning",
    [
        LINE,
        b"\xef\xbb\xbf" + LINE,
        b"\n\n" + LINE,
        b"{\n" + LINE,
        b"[]\n" + LINE,
        b"not JSON\n" + LINE,
        b"{'custom_id': 'a'}\n",
        b'{"custom_id": "a"}\n',
        b'{"method": "POST", "body": {}}\n',
        b'{"body": {"messages": [' + b'"' + b"x" * BEGINNING_BYTES,
        b"\xff\x00\n" + LINE,
        b'{"custom_id": "Pr\xe9nom\x01"}\n',
    ],
)
def test_request_lines_and_faulty_ones_are_not_foreign(beginning):
    assert foreign_format(beginning) is None


@pytest.mark.parametrize("size", [100, 300, 3_000, BEGINNING_BYTES])
@pytest.mark.parametrize("seed", range(10))
def test_random_bytes_are_binary_data(size, seed):
    found = foreign_format(random.Random(seed).randbytes(size))
    assert found is not None
    assert found.kind == ForeignKind.BINARY


def test_a_text_whose_beginning_ends_inside_a_character_is_text():
    found = foreign_format(("x" + "é" * BEGINNING_BYTES).encode()[:BEGINNING_BYTES])
    assert found is not None
    assert found.kind == ForeignKind.TEXT


def test_the_text_of_a_first_line_that_is_no_header_is_not_shown():
    found = foreign_format(b"My secret is 1,2,3\nand more\n")
    assert found is not None
    assert "secret" not in found.refusal("f")


def test_a_path_with_spaces_is_quoted_in_the_command():
    found = foreign_format(json.dumps([1]).encode())
    assert found is not None
    assert found.refusal("it's here.json").endswith("convert 'it'\\''s here.json'")
