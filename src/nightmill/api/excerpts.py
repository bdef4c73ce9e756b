"""The beginning of an answer, or the message of an error, as one line of text for a list of lines.

Excerpts hold prompts and answers, so they go to the client that asks and into no log.
"""

from typing import Any, Final, cast

import msgspec

from nightmill.core.words import clean, cut
from nightmill.core.written_line import read_line

LONGEST: Final = 300
_LONGEST_READ_BYTES: Final = 256 << 10


class _Response(msgspec.Struct, gc=False):
    status_code: int | None = None
    body: Any = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str | None = None
    response: _Response | None = None
    error: Any = None


class Excerpt(msgspec.Struct, frozen=True, gc=False):
    """What a list shows of an output line. `status` is the HTTP status; None without an answer."""

    custom_id: str
    status: int | None
    text: str


_decoder: Final = msgspec.json.Decoder(_Line)


def excerpt_of(line: bytes) -> Excerpt:
    """The excerpt of an output line; of a very long or irregular one without its text."""
    if len(line) > _LONGEST_READ_BYTES:
        return Excerpt(_custom_id(line), None, f"{len(line):,} bytes")
    try:
        row = _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return Excerpt(_custom_id(line), None, f"{len(line):,} bytes")
    if row.response is None:
        return Excerpt(row.custom_id or "", None, _shown(message_in(row.error)))
    body = row.response.body
    text = message_in(body) if (row.response.status_code or 0) >= 400 else answer_in(body)
    return Excerpt(row.custom_id or "", row.response.status_code, _shown(text))


def message_in(body: Any) -> str:
    """The message of an error, of any of the forms that servers have."""
    if isinstance(body, str):
        return body
    fields = _object(body)
    for name in ("error", "detail", "message", "msg"):
        value = fields.get(name)
        if isinstance(value, list):
            value = next(iter(cast("list[object]", value)), None)
        if value:
            return message_in(value)
    return ""


def answer_in(body: Any) -> str:
    """The text of an answer, or a few words on what it holds."""
    fields = _object(body)
    for choice in _list(fields.get("choices"))[:1]:
        message = _object(_object(choice).get("message"))
        calls = [_object(_object(call).get("function")) for call in _list(message.get("tool_calls"))]
        called = ", ".join(f"{call.get('name')}({call.get('arguments')})" for call in calls)
        texts = (_text(message.get("content")), message.get("refusal"), called, _object(choice).get("text"))
        return next((str(text) for text in texts if text), "")
    if output := _list(fields.get("output")):
        return " ".join(_text(_object(item).get("content")) for item in output).strip()
    if results := _list(fields.get("results")):
        return "flagged" if any(_object(result).get("flagged") for result in results) else "not flagged"
    for item in _list(fields.get("data"))[:1]:
        vector = _list(_object(item).get("embedding"))
        return f"vector of {len(vector):,} numbers" if vector else "image"
    return str(fields.get("status") or "")


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return " ".join(str(_object(part).get("text") or "") for part in _list(content)).strip()


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _shown(text: str) -> str:
    return cut(clean(text[: 4 * LONGEST]), LONGEST)


def _custom_id(line: bytes) -> str:
    return read_line(line).custom_id_text
