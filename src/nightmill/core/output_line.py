"""An output line: one row of an output or error file (docs/openai-behaviour.md 5.1, 9.5). No I/O.

Bodies are slices of the upstream's answers and are never re-encoded. Every row is ASCII, a single line and
valid JSON, whatever the upstream sent. A 2xx is a success only with a result of its endpoint; what an answer
without one reports is read by `core.answer_error`.
"""

from typing import Annotated, Final, cast

import msgspec

from nightmill.core import json_text
from nightmill.core.answer_error import failed_answer
from nightmill.core.batch import Usage
from nightmill.core.failure import AnswerError
from nightmill.core.request_line import RequestLine

_ANSWERED = (
    b'{"id": "%b", "custom_id": %b, "response": {"status_code": %d, "request_id": %b, "body": %b}, '
    b'"error": null}\n'
)

_UNANSWERED = b'{"id": "%b", "custom_id": %b, "response": null, "error": {"code": %b, "message": %b}}\n'


class OutputLine(msgspec.Struct, frozen=True, gc=False):
    """One row of an output or error file: ASCII, a single line, with its line break.

    `is_error` decides which of the two files has the row; `usage` is added to the usage of the batch. `error`
    is what an answer that is no result of its endpoint reports; None without an answer.
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
    """An answer with a result. The result is not decoded; the subclasses name its member."""

    result: msgspec.Raw
    usage: _Usage | None = None


class _Choices(_Answer, gc=False):
    result: msgspec.Raw = msgspec.field(name="choices")


class _Data(_Answer, gc=False):
    result: msgspec.Raw = msgspec.field(name="data")


class _Output(_Answer, gc=False):
    result: msgspec.Raw = msgspec.field(name="output")


class _Results(_Answer, gc=False):
    result: msgspec.Raw = msgspec.field(name="results")


class _Id(_Answer, gc=False):
    result: msgspec.Raw = msgspec.field(name="id")


_RESULTS: Final[dict[str, tuple[str, msgspec.json.Decoder[_Answer]]]] = {
    "/v1/responses": ("output", msgspec.json.Decoder(_Output)),
    "/v1/chat/completions": ("choices", msgspec.json.Decoder(_Choices)),
    "/v1/embeddings": ("data", msgspec.json.Decoder(_Data)),
    "/v1/completions": ("choices", msgspec.json.Decoder(_Choices)),
    "/v1/moderations": ("results", msgspec.json.Decoder(_Results)),
    "/v1/images/generations": ("data", msgspec.json.Decoder(_Data)),
    "/v1/images/edits": ("data", msgspec.json.Decoder(_Data)),
    "/v1/videos": ("id", msgspec.json.Decoder(_Id)),
}
"""The member that is the result of each endpoint in OpenAI's response objects, and the decoder that finds it.

A result that is there stands, whatever else the answer says. A response whose own status is `failed` has an
`error` and an `output`, and belongs to the output file like a cut-off one (docs/openai-behaviour.md 5.1).
"""

_NULL: Final = msgspec.Raw(b"null")


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
    """The row of a line that the upstream answered: a success only if a 2xx has a result of the endpoint.

    Args:
        endpoint: the endpoint of the batch, one of `ENDPOINTS`.
        request_id: a JSON string.
    """
    body = body.removeprefix(json_text.BOM)
    result, decoder = _RESULTS[endpoint]
    answer = usage = error = None
    is_json = True
    try:
        if 200 <= status < 300:
            answer = _read(body, result, decoder)
        else:
            json_text.validate(body)
    except json_text.NotJsonError:
        is_json = False
    if answer is not None:
        written, body = 200, json_text.one_ascii_line(body)
        if answer.usage is not None:
            usage = _usage(answer.usage)
    else:
        error, written, body = failed_answer(body, status=status, result=result, is_json=is_json)
    custom_id = line.custom_id_json
    if not custom_id.isascii():
        custom_id = json_text.one_ascii_line(custom_id)
    text = _ANSWERED % (line_id, custom_id, written, request_id, body)
    return OutputLine(text, error is not None, usage, error)


def unanswered(line_id: bytes, line: RequestLine, *, code: str, message: str) -> OutputLine:
    """The row of a line without an HTTP answer: `response` is null (docs/openai-behaviour.md 5.1)."""
    custom_id = json_text.one_ascii_line(line.custom_id_json)
    error = json_text.ascii_string(code), json_text.ascii_string(message)
    return OutputLine(_UNANSWERED % (line_id, custom_id, *error), is_error=True, usage=None)


def _read(body: bytes, result: str, decoder: msgspec.json.Decoder[_Answer]) -> _Answer | None:
    """The result and the usage of an answer; None without a result. An irregular usage is no error.

    Raises:
        NotJsonError: the body is not JSON.
    """
    try:
        if not body.isascii():
            str(body, "utf-8")  # the decoder does not read every string, so it does not find every bad byte
        answer = decoder.decode(body)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        json_text.validate(body)
        return _read_irregular(json_text.without_lone_surrogates(body), result)
    return None if answer.result == _NULL else answer


def _read_irregular(body: bytes, result: str) -> _Answer | None:
    """As `_read`, for JSON that the decoder refuses: no result, lone surrogates, an irregular usage."""
    members = json_text.members(body, result, "usage") if json_text.is_object(body) else {}
    found = msgspec.Raw(members.get(result, b"null"))
    if found == _NULL:
        return None
    return _Answer(found, _irregular_usage(members.get("usage", b"null")))


def _irregular_usage(text: bytes) -> _Usage | None:
    try:
        usage: object = msgspec.json.decode(text)
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
