"""A whole input file in pieces of any size: its index or its errors, at flat memory."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.core.batch import LineError
from nightmill.core.request_line import slice_line
from nightmill.core.segment import IndexedLine, unpack_lines
from nightmill.validation import InputRules, InputValidator, ValidationResult
from nightmill.validation.custom_ids import CustomIds

CHAT = "/v1/chat/completions"


def request(custom_id: str = "a", *, url: str = CHAT, **body: Any) -> bytes:
    whole = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi", **body}
    row = {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}
    return json.dumps(row, ensure_ascii=False).encode("utf-8")


def inspect(
    text: bytes, *, chunk_bytes: int = 1 << 20, **rules: Any
) -> tuple[ValidationResult, list[IndexedLine]]:
    validator = InputValidator(InputRules(**{"endpoint": CHAT, **rules}))
    chunks = [text[at : at + chunk_bytes] for at in range(0, len(text), chunk_bytes)]
    records = b""
    for chunk in chunks:
        if not validator.is_over:
            records += validator.take(chunk)
    records += validator.finish()
    if duplicate_pass := validator.duplicate_pass():
        for chunk in chunks:
            if not duplicate_pass.is_over:
                duplicate_pass.take(chunk)
        duplicate_pass.finish()
    return validator.result(duplicate_pass), list(unpack_lines(records))


def faults(text: bytes, **rules: Any) -> list[tuple[str, int | None]]:
    result, _ = inspect(text, **rules)
    return [(error.code, error.line) for error in result.errors]


ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["\u2028", "\x85", "\x0b", "\x1c"]
)
fillers = st.lists(st.sampled_from([b"\n", b"\r\n", b" \t\n"]), max_size=2).map(b"".join)


@given(
    custom_ids=st.lists(ids, min_size=1, max_size=6, unique=True),
    breaks=st.lists(st.sampled_from([b"\n", b"\r\n", b" \n"]), min_size=6, max_size=6),
    blanks=st.lists(fillers, min_size=7, max_size=7),
    head=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    has_last_break=st.booleans(),
    chunk_bytes=st.integers(min_value=1, max_value=300),
)
def test_every_line_is_indexed_where_it_lies(
    custom_ids: list[str],
    breaks: list[bytes],
    blanks: list[bytes],
    head: bytes,
    has_last_break: bool,
    chunk_bytes: int,
):
    text = head + blanks[0]
    for custom_id, line_break, blank in zip(custom_ids, breaks, blanks[1:], strict=False):
        text += request(custom_id) + line_break + blank
    if not has_last_break:
        text = text.rstrip()
    result, lines = inspect(text, chunk_bytes=chunk_bytes)
    assert result == ValidationResult(len(custom_ids), "m", ())
    assert [line.ordinal for line in lines] == list(range(len(custom_ids)))
    cut = [slice_line(text[line.offset : line.offset + line.length_bytes]) for line in lines]
    assert [json.loads(request_line.custom_id_json) for request_line in cut] == custom_ids
    assert all(b"\n" not in text[line.offset : line.offset + line.length_bytes] for line in lines)


@given(st.integers(min_value=1, max_value=200))
def test_errors_name_physical_lines(chunk_bytes: int):
    text = (
        b"\xef\xbb\xbf\r\n"
        + request("a")
        + b"\n\n \nbad\r\n"
        + request("b", url="/x")
        + b"\n"
        + b'{"custom_id":1'
    )
    assert faults(text, chunk_bytes=chunk_bytes) == [
        ("invalid_json_line", 5),
        ("invalid_url", 6),
        ("invalid_json_line", 7),
    ]


@pytest.mark.parametrize("text", [b"", b"\n", b"\r\n \n\t", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n"])
def test_a_file_without_requests_is_empty(text: bytes):
    message = "The input file is empty. Please ensure that the batch contains at least one request."
    error = LineError("empty_file", message)
    assert inspect(text)[0] == ValidationResult(0, None, (error,), refusals=(error,))


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"(\xb5/\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"PAR1", "Parquet"),
        ("{".encode("utf-32"), "UTF-32"),
        (b"\x00\x00\xfe\xff", "UTF-32"),
        ("{}".encode("utf-16-le"), "UTF-16"),
        ("\n{".encode("utf-16-be"), "UTF-16"),
        ("{}".encode("utf-32-le"), "UTF-32"),
        ("{}".encode("utf-32-be"), "UTF-32"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_a_file_of_another_kind_is_named(beginning: bytes, name: str, chunk_bytes: int):
    result, _ = inspect(beginning + b"\n\xff\xff\n" * 9, chunk_bytes=chunk_bytes)
    [error] = result.errors
    assert (error.code, error.line) == ("invalid_file", None)
    assert name in error.message


@given(chunk_bytes=st.integers(min_value=1, max_value=5_000))
def test_a_line_that_is_too_long_is_an_error_at_that_line(chunk_bytes: int):
    fitting = request("fits")
    fitting += b" " * (2_000 - len(fitting))
    long = request("long", text="x" * 9_000)
    text = b"\n".join([fitting, fitting.replace(b"fits", b"over") + b" ", long, request("c"), long])
    result, lines = inspect(text, chunk_bytes=chunk_bytes, line_bytes=2_000)
    assert [(error.code, error.line) for error in result.errors] == [
        ("line_too_long", 2),
        ("line_too_long", 3),
        ("line_too_long", 5),
    ]
    assert [text[line.offset :].startswith((fitting, request("c"))) for line in lines] == [True, True]


def test_an_endless_line_is_not_gathered():
    validator = InputValidator(InputRules(endpoint=CHAT, line_bytes=1 << 16))
    chunk = b"x" * (1 << 18)
    tracemalloc.start()
    for _ in range(100):
        validator.take(chunk)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    validator.finish()
    assert [error.code for error in validator.result().errors] == ["line_too_long"]


def test_more_lines_than_allowed():
    text = b"\n".join(request(str(number)) for number in range(6))
    assert inspect(text, lines_per_file=6)[0].errors == ()
    assert faults(text, lines_per_file=5) == [("too_many_tasks", None)]


def test_the_last_entry_says_how_many_errors_are_not_listed():
    text = b"bad\n" * 10
    result, _ = inspect(text, listed_errors=4)
    assert [error.line for error in result.errors] == [1, 2, 3, 4, None]
    assert result.errors[-1] == LineError(
        "too_many_errors", "6 more lines have errors that are not listed here."
    )
    assert len(inspect(text, listed_errors=10)[0].errors) == 10


def test_embedding_inputs_are_summed_over_the_file():
    rules = {"endpoint": "/v1/embeddings", "embedding_inputs": 5}
    lines = [request(str(number), url="/v1/embeddings", input=["a", "b"]) for number in range(3)]
    assert faults(b"\n".join(lines[:2]), **rules) == []
    assert faults(b"\n".join(lines), **rules) == [("too_many_embedding_inputs", None)]


def test_several_models_leave_the_batch_without_one():
    text = request("a", model="m") + b"\n" + request("b", model="n")
    assert inspect(text, models_per_file=2)[0].model is None
    assert faults(text) == [("mismatched_model", 2)]


def test_duplicate_custom_ids_are_merged_with_the_other_errors_by_line():
    rows = [
        request("a"),
        request("b"),
        b"bad",
        request("a"),
        b"",
        request("c"),
        b"bad",
        request("a"),
        request("b"),
    ]
    rows.append(request("c").replace(b'"c"', b'"\\u0063"'))
    result, _ = inspect(b"\n".join(rows))
    assert [(error.code, error.param, error.line) for error in result.errors] == [
        ("invalid_json_line", None, 3),
        ("duplicate_custom_id", "custom_id", 4),
        ("invalid_json_line", None, 7),
        ("duplicate_custom_id", "custom_id", 8),
        ("duplicate_custom_id", "custom_id", 9),
        ("duplicate_custom_id", "custom_id", 10),
    ]
    assert result.errors[1].message == (
        "The custom_id 'a' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch."
    )


def test_duplicates_that_are_not_listed_are_counted():
    text = b"\n".join([request("a"), *[request(f"{number % 10}") for number in range(40)], b"bad"])
    result, _ = inspect(text, listed_errors=3)
    assert [(error.code, error.line) for error in result.errors] == [
        ("duplicate_custom_id", 12),
        ("duplicate_custom_id", 13),
        ("duplicate_custom_id", 14),
        ("too_many_errors", None),
    ]
    assert result.errors[-1].message.startswith("28 more lines")


def test_a_line_with_another_error_takes_no_custom_id():
    assert faults(request("a", url="/x") + b"\n" + request("a")) == [("invalid_url", 1)]


def test_lone_surrogates_are_told_apart():
    low, high = request("x").replace(b'"x"', b'"\\ud83d"'), request("x").replace(b'"x"', b'"\\ud83e"')
    assert faults(low + b"\n" + high) == []
    assert faults(low + b"\n" + high + b"\n" + low) == [("duplicate_custom_id", 3)]


hashes = st.sampled_from(
    [hash, lambda _: 7, lambda text: len(text) - 3, lambda text: -(2**63) + len(text) * 256]
)


@given(custom_ids=st.lists(st.text("ab\ud83d", max_size=3), max_size=40), hash_of=hashes)
def test_repeats_are_exact_whatever_the_hash_does(custom_ids: list[str], hash_of: Callable[[str], int]):
    first_look = CustomIds(hash_of)
    for custom_id in custom_ids:
        first_look.add(custom_id)
    duplicate_pass = first_look.repeated_hashes()
    found = [place for place, custom_id in enumerate(custom_ids) if duplicate_pass.is_repeat(custom_id)]
    assert found == [place for place, custom_id in enumerate(custom_ids) if custom_id in custom_ids[:place]]
    assert duplicate_pass.repeats >= len(found)
    if len(set(custom_ids)) == len(custom_ids) and hash_of is hash:
        assert duplicate_pass.repeats == 0


def test_a_custom_id_costs_eight_bytes():
    first_look = CustomIds()
    tracemalloc.start()
    for number in range(200_000):
        first_look.add(f"request-{number}")
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 200_000 * 10
    assert first_look.repeated_hashes().repeats == 0
