"""JSON as text: whether it is valid, where its members lie, and how it becomes one ASCII line. No I/O.

Values are never built and never re-encoded, so that numbers, key order, duplicate keys and escapes survive.
Valid is exactly RFC 8259 in UTF-8: no more (NaN, comments) and no less (escaped lone surrogates, which
msgspec alone refuses). No function recurses in Python. What the members mean belongs to the callers.
"""

import codecs
import json
import re
from collections.abc import Iterator
from functools import cache
from json.encoder import encode_basestring_ascii
from typing import cast

import msgspec

BOM = b"\xef\xbb\xbf"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
# Possessive repeats: without them the engine keeps a backtracking state for each escape of a 16 MB string.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]:,]", re.DOTALL)
_TO_NEXT_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+[{}\[\]]", re.DOTALL)
# A member with what precedes it. Of a value that is an object or an array it ends behind the opening bracket.
_MEMBER = re.compile(
    rb"[ \t\n\r]*+[{,][ \t\n\r]*+(" + _STRING + rb")[ \t\n\r]*+:[ \t\n\r]*+"
    rb"([{\[]|" + _STRING + rb'|[^ \t\n\r,{}\[\]"]++)',
    re.DOTALL,
)
_WHITESPACE = b" \t\n\r"
_NOT_WHITESPACE = re.compile(rb"[^ \t\n\r]")
_LINE_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n\t", b"   ")
_KINDS = {
    ord("{"): "an object",
    ord("["): "an array",
    ord('"'): "a string",
    ord("t"): "a boolean",
    ord("f"): "a boolean",
    ord("n"): "null",
}
_COMMA, _BACKSLASH = b",\\"
_LINE_FEED, _RETURN, _TAB = b"\n\r\t"  # as numbers: a search for a number is five times faster than for bytes
_ESCAPED = "nightmill.json-escaped"
_OPENERS, _CLOSERS = b"{[", b"}]"

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


class NotJsonError(ValueError):
    """The text is not one JSON value in UTF-8."""


class NotUtf8Error(NotJsonError):
    """The text is not UTF-8."""


class TooDeepError(NotJsonError):
    """The text nests deeper than the parsers support."""


def without_lone_surrogates(text: bytes) -> bytes:
    """The same text with every escaped surrogate replaced by one of equal length that msgspec reads.

    The result is fit for checks of validity and for values that are not strings; offsets do not change. An
    escaped backslash before `ud83d` is changed too, into a text that is equally valid.
    """
    swapped = bytearray(
        text
    )  # changed in place: re.sub would keep one object for each of millions of surrogates
    for surrogate in _SURROGATE.finditer(text):
        swapped[surrogate.start() : surrogate.end()] = rb"\ufffd"
    return bytes(swapped)


def validate(text: bytes) -> None:
    """Checks a text.

    Raises:
        NotUtf8Error: the text is not UTF-8.
        TooDeepError: the text nests too deep.
        NotJsonError: the text is not one JSON value.
    """
    try:
        if not text.isascii():
            str(text, "utf-8")
        try:
            _raw_decoder.decode(text)
        except msgspec.DecodeError:
            _raw_decoder.decode(without_lone_surrogates(text))
    except UnicodeDecodeError:
        raise NotUtf8Error("not UTF-8") from None
    except msgspec.DecodeError:
        raise NotJsonError("not JSON") from None
    except RecursionError:
        raise TooDeepError("nested too deep") from None


def is_object(text: bytes) -> bool:
    """Whether a valid JSON text is an object."""
    first = _NOT_WHITESPACE.search(text)
    return first is not None and first[0] == b"{"


def members(text: bytes, *names: str) -> dict[str, bytes]:
    """Exact slices of the values under `names` in a valid JSON object. Of duplicate keys the last counts."""
    try:
        found = _picker(names).decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {name: text[start:end] for name, start, end in member_spans(text) if name in names}
    slices = {name: bytes(getattr(found, name)) for name in names}
    return {name: value for name, value in slices.items() if value}


def member_spans(text: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each value in a valid JSON object, in their order; duplicate keys come twice.

    Several times slower than `members`, and independent of the parsers' limits.

    Raises:
        NotJsonError: an object or an array in the text is not closed.
    """
    end = 0
    while member := _MEMBER.match(text, end):
        start, end = member.span(2)
        if text[start] in _OPENERS:
            end = _end_of_nested(text, end)
        key = member[1]
        yield string(key) if _BACKSLASH in key else str(key[1:-1], "utf-8"), start, end


def elements(text: bytes) -> int:
    """The number of elements of a valid JSON array."""
    inner = text.strip(_WHITESPACE)[1:-1]
    if not inner.strip(_WHITESPACE):
        return 0
    depth, commas = 0, 0
    for _, letter in _tokens(inner):
        if letter in _OPENERS:
            depth += 1
        elif letter in _CLOSERS:
            depth -= 1
        elif letter == _COMMA and depth == 0:
            commas += 1
    return commas + 1


def depth(text: bytes) -> int:
    """The nesting depth of a valid JSON text; a scalar has depth 0."""
    now, deepest = 0, 0
    for _, letter in _tokens(text):
        if letter in _OPENERS:
            now += 1
            deepest = max(deepest, now)
        elif letter in _CLOSERS:
            now -= 1
    return deepest


def string(text: bytes) -> str:
    """The value of a valid JSON string; lone surrogates are kept."""
    return cast("str", json.loads(text))


def utf8_string(text: bytes) -> str:
    """The value of a valid JSON string; lone surrogates, which UTF-8 has no bytes for, are replaced."""
    return string(text).encode("utf-8", "replace").decode()


def kind(text: bytes) -> str:
    """The type of a valid JSON value, in the words of OpenAI's error messages."""
    number = "an integer" if text.lstrip(b"-").isdigit() else "a decimal"
    return _KINDS.get(text[0], number)


def one_ascii_line(text: bytes) -> bytes:
    """A valid JSON text without line breaks and with every non-ASCII character escaped; nothing else changes.

    Raw line breaks and tabs can only be whitespace between tokens, and non-ASCII only be inside strings.
    """
    if _LINE_FEED in text or _RETURN in text or _TAB in text:
        text = text.translate(_LINE_BREAKS_TO_SPACES).strip(b" ")
    return text if text.isascii() else str(text, "utf-8").encode("ascii", _ESCAPED)


def ascii_string(value: str) -> bytes:
    """`value` as a JSON string."""
    return encode_basestring_ascii(value).encode("ascii")


@cache
def _picker(names: tuple[str, ...]) -> msgspec.json.Decoder[msgspec.Struct]:
    fields = [(name, msgspec.Raw, msgspec.Raw(b"")) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Members", fields, gc=False))


def _end_of_nested(text: bytes, at: int) -> int:
    """The end of an object or an array whose opening bracket ends at `at`."""
    depth = 1
    while depth:
        bracket = _TO_NEXT_BRACKET.match(text, at)
        if bracket is None:
            raise NotJsonError("an object or an array is not closed")
        at = bracket.end()
        depth += 1 if text[at - 1] in _OPENERS else -1
    return at


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return encode_basestring_ascii(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(_ESCAPED, _escape)


def _tokens(text: bytes) -> Iterator[tuple[int, int]]:
    for token in _TOKEN.finditer(text):
        at = token.start()
        yield at, text[at]
