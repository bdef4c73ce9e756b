"""A request line: one row of an input file, cut into the slices a worker needs (docs/openai-behaviour.md 3).
No I/O.

`custom_id` and body are slices of the input and are never re-encoded. Whether a line is acceptable is decided
by `validation`.
"""

import json

import msgspec

from nightmill.core import json_text

_WHITESPACE = b" \t\n\r"

_QUOTE = b'"'


class RequestLine(msgspec.Struct, frozen=True, gc=False):
    """What a worker needs of a line that validation has accepted, as slices of the input.

    Args:
        custom_id_json: the value of `custom_id`, a JSON string with its quotes.
        body: the value of `body`, a JSON object; sent to the upstream byte for byte.
    """

    custom_id_json: bytes
    body: bytes

    @property
    def model(self) -> str | None:
        """The model that the body names, None where it names none.

        Decoded from the body at each call, so that lines whose model is never asked for cost nothing.
        """
        value = json_text.members(self.body, "model").get("model", b"")
        return json_text.string(value) if value.startswith(_QUOTE) else None


def endpoint_in(raw: bytes) -> str | None:
    """The `url` of a line that need not be valid; None where there is none."""
    try:
        url = json.loads(raw.removeprefix(json_text.BOM))["url"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return url if isinstance(url, str) else None


class _Slices(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    body: msgspec.Raw


_slices = msgspec.json.Decoder(_Slices)


def slice_line(raw: bytes | memoryview) -> RequestLine:
    """Cuts a line that validation has accepted.

    Raises:
        ValueError: the text is not a request line.
    """
    try:
        slices = _slices.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _slice_irregular(bytes(raw).removeprefix(json_text.BOM))
    return RequestLine(bytes(slices.custom_id), bytes(slices.body))


def _slice_irregular(raw: bytes) -> RequestLine:
    """Cuts a line that msgspec does not decode: with a byte order mark, lone surrogates or deep nesting."""
    fields = json_text.members(raw, "custom_id", "body") if raw.strip(_WHITESPACE)[:1] == b"{" else {}
    if "custom_id" not in fields or "body" not in fields:
        raise ValueError("this is not a request line")
    return RequestLine(fields["custom_id"], fields["body"])
