"""An output line: one row of an output or error file (docs/openai-behaviour.md 5.1, 9.5). No I/O.

Bodies are slices of the upstream's answers and are never re-encoded. Every row is ASCII, a single line and
valid JSON, whatever the upstream sent.
"""

from typing import Annotated, cast

import msgspec

from nightmill.core import json_text
from nightmill.core.batch import Usage
from nightmill.core.failure import AnswerError
from nightmill.core.request_line import RequestLine

_WHITESPACE = b" \t\n\r"

_ANSWERED = (
    b'{"id": "%b", "custom_id": %b, "response": {"status_code": %d, "request_id": %b, "body": %b}, '
    b'"error": null}\n'
)

_UNANSWERED = b'{"id": "%b", "custom_id": %b, "response": null, "error": {"code": %b, "message": %b}}\n'


class OutputLine(msgspec.Struct, frozen=True, gc=False):
    """One row of an output or error file: ASCII, a single line, with its line break.

    `is_error` decides which of the two files has the row; `usage` is added to the usage of the batch. `error` is
    what an answer that is no result of its endpoint reports; None without an answer.
    """

    text: bytes
    is_error: bool
    usage: Usage | None
    error: AnswerError | None = None


# An answer may hold any number; an unrealistic number must not overflow a counter.
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]

_COUNT_LIMIT = 1 << 32


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = 0
    reasoning_tokens: _Count | None = 0


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = 0
    completion_tokens: _Count | None = 0
    input_tokens: _Count | None = 0
    output_tokens: _Count | None = 0
    total_tokens: _Count | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, gc=False):
    usage: _Usage | None = None


class _IrregularAnswer(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw(b"null")


_answer = msgspec.json.Decoder(_Answer)

_irregular_answer = msgspec.json.Decoder(_IrregularAnswer)


def is_json(body: bytes) -> bool:
    """Whether the body of an answer can be part of an output line unchanged."""
    try:
        json_text.validate(body.removeprefix(json_text.BOM))
    except json_text.NotJsonError:
        return False
    return True


def answered(
    line_id: bytes, line: RequestLine, *, endpoint: str, status: int, request_id: bytes, body: bytes
) -> OutputLine:
    """The row of a line that the upstream answered. A body that is not JSON is replaced by an error object.

    Args:
        request_id: a JSON string.
    """
    body = body.removeprefix(json_text.BOM)
    is_error = not 200 <= status < 300
    usage = None
    try:
        shell = _shell(body)
    except json_text.NotJsonError:
        status = status if status >= 400 else 502
        is_error = True
        body = _not_json(status)
    else:
        body = json_text.one_ascii_line(body)
        if not is_error and shell is not None:
            usage = _usage(shell)
    custom_id = line.custom_id_json
    if not custom_id.isascii():
        custom_id = json_text.one_ascii_line(custom_id)
    written = status if is_error else 200
    error = AnswerError(status, None, is_json=True) if is_error else None
    return OutputLine(_ANSWERED % (line_id, custom_id, written, request_id, body), is_error, usage, error)


def unanswered(line_id: bytes, line: RequestLine, *, code: str, message: str) -> OutputLine:
    """The row of a line without an HTTP answer: `response` is null (docs/openai-behaviour.md 5.1)."""
    custom_id = json_text.one_ascii_line(line.custom_id_json)
    error = json_text.ascii_string(code), json_text.ascii_string(message)
    return OutputLine(_UNANSWERED % (line_id, custom_id, *error), is_error=True, usage=None)


def _not_json(status: int) -> bytes:
    message = f"The upstream's answer (reported here with status {status}) was not valid JSON."
    return (
        b'{"error": {"message": ' + json_text.ascii_string(message) + b', "type": "server_error", '
        b'"param": null, "code": "invalid_upstream_answer"}}'
    )


def _shell(body: bytes) -> _Usage | None:
    """The usage that the answer reports, if any. An irregular usage does not make the answer an error.

    Raises:
        NotJsonError: the body is not JSON.
    """
    try:
        if not body.isascii():
            str(body, "utf-8")  # the decoder does not read every string, so it does not find every bad byte
        return _answer.decode(body).usage
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        json_text.validate(body)
    plain = json_text.without_lone_surrogates(body)
    try:
        return _answer.decode(plain).usage
    except msgspec.DecodeError:
        return _irregular_usage(plain)


def _irregular_usage(body: bytes) -> _Usage | None:
    try:
        usage: object = msgspec.json.decode(_irregular_answer.decode(body).usage)
    except msgspec.DecodeError:
        return None
    if not isinstance(usage, dict):
        return None
    known = cast("dict[str, object]", usage)
    found = _Usage()
    for name in _Usage.__struct_fields__:
        value = known.get(name)
        if isinstance(value, dict):
            details = cast("dict[str, object]", value)
            sound = _Details(_count(details.get("cached_tokens")), _count(details.get("reasoning_tokens")))
            setattr(found, name, sound)
        elif not name.endswith("_details"):
            setattr(found, name, _count(value))
    return found


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 <= value < _COUNT_LIMIT else 0


def _usage(reported: _Usage) -> Usage:
    taken = reported.prompt_tokens or reported.input_tokens or 0
    given = reported.completion_tokens or reported.output_tokens or 0
    taken_details = reported.prompt_tokens_details or reported.input_tokens_details
    given_details = reported.completion_tokens_details or reported.output_tokens_details
    return Usage(
        taken,
        (taken_details and taken_details.cached_tokens) or 0,
        given,
        (given_details and given_details.reasoning_tokens) or 0,
        reported.total_tokens or taken + given,
    )
