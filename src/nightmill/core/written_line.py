"""The states of a request line, and what the lines of output and error files say of them. No I/O.

`core.output_line` writes these lines. Answers are not decoded, except for the codes of an error.
"""

import json
from enum import StrEnum
from typing import Final, cast

import msgspec

from nightmill.core import json_text

_ORDINAL_DIGITS: Final = 8
_LONGEST_CODE: Final = 64
_NULL: Final = msgspec.Raw(b"null")


class LineState(StrEnum):
    """Where a request line is. The states from `ANSWERED` on are final."""

    WAITING = "waiting"
    """No attempt is in flight; the line will be sent when its turn comes."""
    IN_FLIGHT = "in_flight"
    """An attempt is in flight at an upstream."""
    RETRYING = "retrying"
    """An attempt failed; the line will be sent again."""
    LEASED = "leased"
    """A worker holds the line and has not said more: waiting, in flight or retrying."""
    ANSWERED = "answered"
    """The line is in the output file, or will be."""
    FAILED = "failed"
    """The upstream answered with an error, or gave no answer after all attempts."""
    EXPIRED = "expired"
    """The batch expired before the line was answered."""
    CANCELLED = "cancelled"
    """The batch was cancelled or stopped before the line was answered."""


_BY_CODE: Final = {"batch_expired": LineState.EXPIRED, "batch_cancelled": LineState.CANCELLED}


def state_of_error(code: str) -> LineState:
    """The state of a line in an error file, by the line's code."""
    return _BY_CODE.get(code, LineState.FAILED)


class WrittenLine(msgspec.Struct, frozen=True, gc=False):
    """One line of an output or error file. `custom_id` is a JSON string."""

    id: str
    custom_id: msgspec.Raw
    response: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL

    @property
    def ordinal(self) -> int:
        """The place of the request line in the input, counted from 0."""
        return int(self.id[-_ORDINAL_DIGITS:], 16)

    @property
    def custom_id_text(self) -> str:
        return json_text.string(bytes(self.custom_id))


_DECODER: Final = msgspec.json.Decoder(WrittenLine)


def read_line(text: bytes) -> WrittenLine:
    """Raises ValueError when the text is not a line of an output or error file."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError):
        fields = json_text.members(text, "id", "custom_id", "response", "error")
        if "id" not in fields or "custom_id" not in fields:
            raise ValueError("this is not a line of an output or error file") from None
        rest = (msgspec.Raw(fields.get(name, b"null")) for name in ("custom_id", "response", "error"))
        return WrittenLine(json_text.string(fields["id"]), *rest)


def codes_of(line: WrittenLine) -> tuple[str, ...]:
    """The codes of a line of an error file, the most telling one first.

    A line without an answer has nightmill's code. An answer has the code and the type that it names, and its
    HTTP status.
    """
    if line.error != _NULL:
        return (str(json.loads(bytes(line.error)).get("code")),)
    members = json_text.members(bytes(line.response), "status_code", "body")
    status = members.get("status_code", b"").decode("ascii", "replace")
    return (*filter(_is_shown, codes_in_answer(members.get("body", b"null"))), status)


def codes_in_answer(body: bytes) -> list[str]:
    """The code and the type that an upstream's answer names, of any length."""
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        return []
    fields = cast("dict[str, object]", answer) if isinstance(answer, dict) else {}
    for name in ("error", "detail"):
        inner = fields.get(name)
        if isinstance(inner, dict):
            fields = cast("dict[str, object]", inner)
            break
    found = (fields.get("code"), fields.get("type"))
    return [str(it) for it in found if isinstance(it, str | int) and not isinstance(it, bool)]


def _is_shown(code: str) -> bool:
    return 0 < len(code) <= _LONGEST_CODE and code.isprintable()
