"""Names the format of a file that is not request lines, from its first bytes, and how to convert it. No I/O.

A file is recognised by its whole form: compressed, binary, in another encoding, a JSON array, a table, plain
text, bare request bodies, or empty. Errors of single lines belong to `line_rules`.
"""

import codecs
import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, cast

from nightmill.core.json_text import BOM
from nightmill.validation.file_format import binary_format, other_encoding

BEGINNING_BYTES: Final = 1 << 16
"""As many bytes of a file as are needed to recognise it."""

_COLUMN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_. -]{0,39}")
_WORD: Final = re.compile(r"[\w@%+=:,./-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_JSON_START: Final = re.compile(rb"\{\s*[\"}]|\[\s*[\"\[{\]]")
_TABLES: Final = {",": "a CSV table", "\t": "a table with tabs (TSV)", ";": "a CSV table with semicolons"}
_PROMPT_COLUMNS: Final = ("prompt", "text", "question", "input", "content", "message", "instruction")
_LISTED_COLUMNS: Final = 6
_BODY_MEMBERS: Final = frozenset({"messages", "model"})
_LINE_MEMBERS: Final = frozenset({"custom_id", "method", "url", "body"})
_COMPRESSED: Final = frozenset({"gzip data", "bzip2 data", "xz data"})


class ForeignKind(StrEnum):
    """What a file is instead of request lines."""

    EMPTY = "empty"
    COMPRESSED = "compressed"
    BINARY = "binary"
    ENCODED = "encoded"
    ARRAY = "array"
    JSON = "json"
    BODIES = "bodies"
    OBJECTS = "objects"
    TABLE = "table"
    TEXT = "text"


_CONVERTIBLE: Final = frozenset(ForeignKind) - {ForeignKind.EMPTY, ForeignKind.BINARY}


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """What a file is instead of request lines.

    Args:
        name: for a sentence such as "x is a CSV table".
        delimiter: of a table; empty for other formats.
        prompt: a template that makes a prompt of a row; empty if rows are bodies or request lines.
        lacks_model: whether a model has to be named.
    """

    kind: ForeignKind
    name: str
    delimiter: str = ""
    prompt: str = ""
    lacks_model: bool = False

    @property
    def code(self) -> str:
        """The code of the error that a validation reports."""
        return "empty_file" if self.kind == ForeignKind.EMPTY else "invalid_file"

    def refusal(self, path: str) -> str:
        """What the file is and what to do, for a file at `path`."""
        return f"{'stdin' if path == '-' else path} is {self.name}; {self._remedy(path)}"

    def _remedy(self, path: str) -> str:
        if self.kind == ForeignKind.EMPTY:
            return "write one request per line"
        if self.kind not in _CONVERTIBLE:
            return "unpack it, or write it as CSV or JSON Lines in UTF-8, first"
        word = path if _WORD.fullmatch(path) else "'" + path.replace("'", "'\\''") + "'"
        model = " --model MODEL" if self.lacks_model else ""
        prompt = f" --prompt '{self.prompt}'" if self.prompt else ""
        return f"turn it into request lines with: nightmill convert {word}{model}{prompt}"


def foreign_format(beginning: bytes) -> ForeignFormat | None:
    """What the file is, or None if its first line may be a request line or a faulty one.

    Args:
        beginning: the first `BEGINNING_BYTES`, or the whole of a shorter file.
    """
    if (name := binary_format(beginning)) is not None:
        return ForeignFormat(ForeignKind.COMPRESSED if name in _COMPRESSED else ForeignKind.BINARY, name)
    if (name := other_encoding(beginning)) is not None:
        return ForeignFormat(ForeignKind.ENCODED, name)
    text = beginning.removeprefix(BOM).lstrip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ForeignFormat(ForeignKind.EMPTY, "empty")
    if (found := _of_no_text(beginning, lines)) is not None:
        return found
    if text.startswith(b"["):
        return None if len(lines) > 1 and _decoded(lines[0]) is not None else _of_array(text)
    if text.startswith(b"{"):
        return _of_objects(lines)
    if b"\0" in text or any(line.startswith(b"{") for line in lines):
        return None
    return _of_text(lines[0])


def _of_no_text(beginning: bytes, lines: list[bytes]) -> ForeignFormat | None:
    """Binary data, or text of another encoding. Request lines with a few bad bytes are neither."""
    invalid, control = _invalid_utf8_at(beginning), _CONTROL.search(beginning)
    is_binary = b"\0" in beginning or (invalid is not None and control is not None)
    is_from_first_line = invalid is not None and invalid < beginning.find(lines[0]) + len(lines[0])
    if not (is_binary or is_from_first_line):
        return None
    if _JSON_START.match(lines[0].lstrip()) or any(
        isinstance(_decoded(line), dict) for line in lines if line.startswith(b"{")
    ):
        return None
    offset = min(at for at in (invalid, control and control.start()) if at is not None)
    number = beginning.count(b"\n", 0, offset) + 1
    name = "binary data, not UTF-8 text" if is_binary else "text that is not UTF-8"
    place = f"byte 0x{beginning[offset]:02x} at offset {offset}, in line {number}"
    return ForeignFormat(ForeignKind.BINARY, f"{name} ({place})")


def _invalid_utf8_at(beginning: bytes) -> int | None:
    """The offset of the first bytes that are not UTF-8. The end of a beginning may lie inside a character."""
    is_whole = len(beginning) < BEGINNING_BYTES
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning, final=is_whole)
    except UnicodeDecodeError as error:
        return error.start
    return None


def _of_objects(lines: list[bytes]) -> ForeignFormat | None:
    if lines[0].strip() == b"{":
        return ForeignFormat(ForeignKind.JSON, "JSON over several lines") if _goes_on(lines) else None
    first = _decoded(lines[0])
    if not isinstance(first, dict):
        return None  # faulty, or it goes on behind the beginning
    members = cast("dict[str, object]", first)
    if _LINE_MEMBERS & set(members):
        return None
    if _BODY_MEMBERS & set(members):
        name = "a file of bare request bodies, without custom_id, method and url"
        return ForeignFormat(ForeignKind.BODIES, name, lacks_model="model" not in members)
    name = "a file of JSON objects that are no requests"
    return ForeignFormat(ForeignKind.OBJECTS, name, prompt=_template(members), lacks_model=True)


def _of_array(text: bytes) -> ForeignFormat:
    """The first element shows whether prompts have to be made."""
    kind, name = ForeignKind.ARRAY, "one JSON array"
    try:
        first: object = json.JSONDecoder().raw_decode(text[1:].lstrip().decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return ForeignFormat(kind, name)
    if isinstance(first, str):
        return ForeignFormat(kind, name, prompt="{text}", lacks_model=True)
    if not isinstance(first, dict):
        return ForeignFormat(kind, name)
    members = cast("dict[str, object]", first)
    if _LINE_MEMBERS & set(members):
        return ForeignFormat(kind, name)
    if _BODY_MEMBERS & set(members):
        return ForeignFormat(kind, name, lacks_model="model" not in members)
    return ForeignFormat(kind, name, prompt=_template(members), lacks_model=True)


def _of_text(line: bytes) -> ForeignFormat:
    header = line.decode("utf-8", "ignore")  # the end of a beginning may lie inside a character
    for delimiter, table in _TABLES.items():
        columns = [name.strip() for row in csv.reader([header], delimiter=delimiter) for name in row]
        if len(columns) > 1 and all(_COLUMN.fullmatch(name) for name in columns):
            shown = ", ".join(columns[:_LISTED_COLUMNS])
            more = len(columns) - _LISTED_COLUMNS
            name = f"{table} with the columns {shown}{f' and {more} more' if more > 0 else ''}"
            template = _template(dict.fromkeys(columns))
            return ForeignFormat(ForeignKind.TABLE, name, delimiter, template, lacks_model=True)
    return ForeignFormat(ForeignKind.TEXT, "plain text", prompt="{text}", lacks_model=True)


def _template(row: Mapping[str, object]) -> str:
    """The column that is most likely the prompt, as a template."""
    columns = [name for name in row if _COLUMN.fullmatch(name)]
    for usual in _PROMPT_COLUMNS:
        for column in columns:
            if column.lower() == usual:
                return f"{{{column}}}"
    return f"{{{columns[-1] if columns else 'COLUMN'}}}"


def _goes_on(lines: list[bytes]) -> bool:
    """Whether the second line is inside the object that the first line opens."""
    return len(lines) > 1 and lines[1].lstrip().startswith((b'"', b"}"))


def _decoded(line: bytes) -> object:
    """The value of the line; None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
