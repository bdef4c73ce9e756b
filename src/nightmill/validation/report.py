"""The validation report: one JSON object for each invalid line of an input file. No I/O.

A row has the physical `line` (from 1), the `ordinal` of the request line (from 0), `custom_id` (null where it
can't be read), `code`, `field`, `reason` and `hint`. Rows are in the order of the lines. An error of the file
as a whole has no `line`. The text of a row is ASCII.
"""

from typing import Final

from nightmill.core import json_text
from nightmill.core.batch import LineError

_ROW: Final = (
    b'{"line": %b, "ordinal": %b, "custom_id": %b, "code": %b, "field": %b, "reason": %b, "hint": %b}\n'
)
_NULL: Final = b"null"
_HINTS: Final = {
    "duplicate_custom_id": "Give each line a custom_id of its own, for example its row number.",
    "empty_file": "Write one request per line.",
    "invalid_file": "Unpack or convert the file: it must be JSON Lines in UTF-8, not compressed.",
    "invalid_request": "Add the parameter to 'body', as for a single request to this endpoint.",
    "invalid_type": "Write the value with the JSON type that is expected.",
    "invalid_url": "Set 'url' to the batch's endpoint, or create the batch for the endpoint of its lines.",
    "invalid_value": "Write the value that is named.",
    "line_too_long": "Shorten the request, or pass a URL in place of the content.",
    "mismatched_model": "Put the lines of each model into a file of their own.",
    "missing_required_parameter": "A line needs 'custom_id', 'method', 'url' and 'body'.",
    "model_not_found": "GET /v1/models lists the models that may be named.",
    "nesting_too_deep": "Flatten the body, or pass the inner part as text.",
    "streaming_unsupported": "Remove 'stream' from the body.",
    "too_many_embedding_inputs": "Split the file into several batches.",
    "too_many_tasks": "Split the file into several batches.",
}
_NOT_JSON: Final = "Write each request with a JSON library, on one line: json.dumps(request) in Python."
_NOT_UTF8: Final = "Save the file as UTF-8."
_PYTHON: Final = "This looks like a Python dict that was written with str(): write it with json.dumps()."
_PRETTY: Final = "This looks like a part of an object over several lines: write each request on one line."


class ValidationReport:
    """Collects the rows until `take`."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []

    def add(self, error: LineError, raw: bytes | None, *, ordinal: int) -> None:
        """Adds the row of a line; `raw` is None for a line that is too long to be read."""
        self._rows.append(report_row(error, raw, ordinal=ordinal))

    def take(self) -> bytes:
        """The rows since the last call."""
        text = b"".join(self._rows)
        self._rows.clear()
        return text


def report_row(error: LineError, raw: bytes | None = None, *, ordinal: int | None = None) -> bytes:
    """The row of one error."""
    return _ROW % (
        _NULL if error.line is None else b"%d" % error.line,
        _NULL if ordinal is None else b"%d" % ordinal,
        _custom_id(raw),
        json_text.ascii_string(error.code),
        _NULL if error.param is None else json_text.ascii_string(error.param),
        json_text.ascii_string(error.message),
        json_text.ascii_string(hint_of(error, raw)),
    )


def hint_of(error: LineError, raw: bytes | None = None) -> str:
    """What to do about an error; empty where nothing general can be said."""
    if error.code != "invalid_json_line" or raw is None:
        return _HINTS.get(error.code, "")
    text = raw.strip()
    if text.startswith(b"{'"):
        return _PYTHON
    if "UTF-8" in error.message:
        return _NOT_UTF8
    if text[:1] not in (b"{", b"[") or text == b"{":
        return _PRETTY
    return _NOT_JSON


def _custom_id(raw: bytes | None) -> bytes:
    """The custom_id as JSON in ASCII; null where the line has none that is a string."""
    if raw is None:
        return _NULL
    text = raw.strip()
    try:
        json_text.validate(text)
        if text[:1] != b"{":
            return _NULL
        found = json_text.members(text, "custom_id").get("custom_id", _NULL)
    except json_text.NotJsonError:
        return _NULL
    return json_text.one_ascii_line(found) if found[:1] == b'"' else _NULL
