"""Reads what people have in place of request lines, as rows: compressed files, tables, arrays, bodies, text.

`rows_of` reads a file; request lines of its rows are written by `answers.write_rows`. Tables, text and JSON
Lines are read with constant memory, an array as a whole.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, assert_never, cast

from nightmill.client.request_rows import Row
from nightmill.errors import RequestError
from nightmill.validation.file_format import other_encoding
from nightmill.validation.foreign_format import BEGINNING_BYTES, ForeignFormat, ForeignKind, foreign_format

_SPACE: Final = re.compile(r"\s+")
_LONGEST_CELL: Final = 1 << 30
_NAMED_COLUMNS: Final = 6
_NO_MODEL: Final = "row {} names no model; name one with --model"
_ENCODINGS: Final = {"UTF-16 text": "utf-16", "UTF-32 text": "utf-32"}
_MARKS: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_MODEL_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions")
_OPENERS: Final = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file in any of the formats of `foreign_format`, or of request lines.

    Raises:
        RequestError: the file is empty, of another format, or a row of it cannot be read.
    """
    with path.open("rb") as raw:
        signature = raw.read(8)
        opener = next((opens for mark, opens in _OPENERS.items() if signature.startswith(mark)), None)
        raw.seek(0)
        stream = raw if opener is None else cast("BinaryIO", opener(raw, "rb"))
        encoding = "utf-8-sig"
        try:
            encoding = _encoding(stream)
            stream.seek(0)
            found = foreign_format(_beginning(stream, encoding))
            stream.seek(0)
            with TextIOWrapper(stream, encoding, newline="") as text:
                yield from _rows(text, found, path)
        except UnicodeDecodeError:
            raise RequestError(f"{path} has bytes that are not {_shown(encoding)}") from None
        except (EOFError, lzma.LZMAError, OSError) as error:
            if opener is None:
                raise
            raise RequestError(f"{path} is damaged and can't be unpacked: {error}") from None


def requests_of(
    rows: Iterable[Row], *, endpoint: str | None, model: str | None, prompt: str | None, id_column: str | None
) -> Iterator[Row]:
    """Each row with its custom_id, once it is known that a request can be made of it.

    Args:
        endpoint: None for that of the row, else of its members.
        model: of bodies that name none.
        prompt: a template such as `Summarise: {text}`; None if rows are bodies or request lines.
        id_column: the column with the custom_id; None numbers the rows.

    Raises:
        RequestError: a row is no request, names no model, or has no such column.
    """
    for number, row in enumerate(rows, start=1):
        if prompt is None:
            _refuse_unusable(row, number, endpoint, model)
        elif model is None and endpoint in {None, *_MODEL_ENDPOINTS}:
            raise RequestError(_NO_MODEL.format(number))
        if id_column is None:
            yield row
            continue
        custom_id = _custom_id(row, id_column, number)
        if prompt is not None:
            yield {**row, "custom_id": custom_id}
        else:
            yield {"custom_id": custom_id, "body": {name: row[name] for name in row if name != id_column}}


def _refuse_unusable(row: Row, number: int, endpoint: str | None, model: str | None) -> None:
    is_line = isinstance(row.get("body"), Mapping)
    body = cast("Row", row["body"] if is_line else row)
    endpoint = endpoint or cast("str | None", row.get("url"))
    if endpoint is None and "messages" not in body and not is_line:
        if "model" in body:
            raise RequestError(f"row {number} does not show its endpoint; name it with --endpoint")
        columns = ", ".join(f"{{{name}}}" for name in list(body)[:_NAMED_COLUMNS])
        raise RequestError(
            f"row {number} is no request; make prompts of its columns with --prompt, from {columns}"
        )
    if model is None and "model" not in body and endpoint in {None, *_MODEL_ENDPOINTS}:
        raise RequestError(_NO_MODEL.format(number))


def _custom_id(row: Row, column: str, number: int) -> str:
    if column not in row:
        raise RequestError(f"row {number} has no column '{column}'")
    return str(row[column])


def _encoding(stream: BinaryIO) -> str:
    beginning = stream.read(8)
    name = other_encoding(beginning)
    if name is None:
        return "utf-8-sig"
    encoding = _ENCODINGS[name]
    if beginning.startswith(_MARKS):
        return encoding
    return f"{encoding}-{'be' if beginning[0] == 0 else 'le'}"


def _shown(encoding: str) -> str:
    """`utf-8-sig` -> `UTF-8`."""
    return "-".join(encoding.upper().split("-")[:2])


def _beginning(stream: BinaryIO, encoding: str) -> bytes:
    """The beginning of the text in UTF-8."""
    beginning = stream.read(BEGINNING_BYTES)
    if encoding == "utf-8-sig":
        return beginning  # as it is, so that its first bad byte is named
    return beginning.decode(encoding, "ignore").encode()


def _rows(text: TextIO, found: ForeignFormat | None, path: Path) -> Iterator[Row]:
    if found is None:
        yield from _json_lines(text)
        return
    match found.kind:
        case ForeignKind.BODIES | ForeignKind.OBJECTS:
            yield from _json_lines(text)
        case ForeignKind.ARRAY | ForeignKind.JSON:
            yield from _values(text.read())
        case ForeignKind.TABLE:
            yield from _table(text, found.delimiter)
        case ForeignKind.TEXT:
            yield from ({"text": line.strip()} for line in text if line.strip())
        case ForeignKind.EMPTY | ForeignKind.BINARY | ForeignKind.COMPRESSED | ForeignKind.ENCODED:
            raise RequestError(found.refusal(str(path)), code=found.code)
        case _:
            assert_never(found.kind)


def _table(text: TextIO, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(text, delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for row in reader:
        # Cells behind the last column have the name None.
        yield {name: value or "" for name, value in row.items() if isinstance(cast("Any", name), str)}


def _json_lines(text: TextIO) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield _row(_json(line, f"line {number}"), f"line {number}")


def _values(text: str) -> Iterator[Row]:
    """The elements of an array, or objects one after the other."""
    decoder, count = json.JSONDecoder(), 0
    at = _behind_space(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise RequestError(f"the JSON is wrong or ends early behind {count} elements") from None
        for element in cast("list[Any]", value) if isinstance(value, list) else [value]:
            count += 1
            yield _row(element, f"element {count}")
        at = _behind_space(text, at)


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"{place} is not JSON") from None


def _row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise RequestError(f"{place} is neither an object nor a text")
    return cast("Row", value)
