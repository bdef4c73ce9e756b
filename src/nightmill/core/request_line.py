"""A request line: one row of an input file, cut into the slices a worker needs (docs/openai-behaviour.md 3).
No I/O.

`custom_id` and body are slices of the input and are never re-encoded. Whether a line is acceptable is decided
by `validation`.
"""

import msgspec

from nightmill.core import json_text

_WHITESPACE = b" \t\n\r"


class RequestLine(msgspec.Struct, frozen=True, gc=False):
    """What the worker needs of a checked line: slices of the input, never re-encoded."""

    custom_id_json: bytes
    body: bytes


class _Slices(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    body: msgspec.Raw


_slices = msgspec.json.Decoder(_Slices)


def slice_line(raw: bytes | memoryview) -> RequestLine:
    """Cuts a line that intake has accepted. Raises ValueError when it is not one."""
    try:
        slices = _slices.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _slice_oddity(bytes(raw).removeprefix(json_text.BOM))
    return RequestLine(bytes(slices.custom_id), bytes(slices.body))


def _slice_oddity(raw: bytes) -> RequestLine:
    fields = json_text.members(raw, "custom_id", "body") if raw.strip(_WHITESPACE)[:1] == b"{" else {}
    if "custom_id" not in fields or "body" not in fields:
        raise ValueError("this is not a request line")
    return RequestLine(fields["custom_id"], fields["body"])
