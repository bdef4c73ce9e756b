"""Validates a raw line of an input file (docs/openai-behaviour.md 3.1, 4.3).

`request_line.slice_line` and every JSON parser can read a valid line. An invalid line gets a single error,
the first in the order custom_id, method, url, body. Only the model server checks types and values inside the
body; `custom_ids` finds repeated custom_ids. This module does no I/O.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from nightmill.core import json_text
from nightmill.core.batch import LineError

_CHAT = "/v1/chat/completions"
_EMBEDDINGS = "/v1/embeddings"
_MODEL_REQUIRED = frozenset({_CHAT, _EMBEDDINGS, "/v1/completions", "/v1/responses"})
_FAMILY = {
    _CHAT: "Chat Completions",
    _EMBEDDINGS: "Embeddings",
    "/v1/completions": "Completions",
    "/v1/responses": "Responses",
    "/v1/moderations": "Moderations",
    "/v1/images/generations": "Image Generation",
    "/v1/images/edits": "Image Edits",
    "/v1/videos": "Videos",
}
# The limit for quoted text in a message: a custom_id may be megabytes long.
_QUOTED_CHARACTERS = 200
# The number of brackets to find singly before counting all: most lines have fewer, and `find` skips text an
# order of magnitude faster than `count`.
_OPENERS_SEARCHED = 12
_LINE_MEMBERS = ("custom_id", "method", "url", "body")
_BODY_MEMBERS = ("model", "messages", "input", "stream")
_NULL = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRules:
    """The rules for the lines of an input file. Empty `models` allow any model."""

    endpoint: str
    models: Collection[str] = ()
    models_per_file: int = 1
    lines_per_file: int = 50_000
    line_bytes: int = 100 << 20
    nesting: int = 200
    embedding_inputs: int = 50_000
    listed_errors: int = 100


class _Body(msgspec.Struct, gc=False):
    model: str
    stream: bool | None = None
    needed: msgspec.Raw = msgspec.Raw(b"")


class _ChatBody(_Body, gc=False, kw_only=True):
    needed: msgspec.Raw = msgspec.field(name="messages")


class _EmbeddingBody(_Body, gc=False, kw_only=True):
    needed: msgspec.Raw = msgspec.field(name="input")


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    method: str
    url: str


class _PlainLine(_Line, gc=False):
    body: _Body


class _ChatLine(_Line, gc=False):
    body: _ChatBody


class _EmbeddingLine(_Line, gc=False):
    body: _EmbeddingBody


_chat_decoder = msgspec.json.Decoder(_ChatLine)
_embedding_decoder = msgspec.json.Decoder(_EmbeddingLine)
_plain_decoder = msgspec.json.Decoder(_PlainLine)


class _InvalidLineError(Exception):
    """The reason why a line is invalid."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class LineChecker:
    """Checks the lines of a file, in order.

    `models` and `embedding_inputs` are the models and the number of inputs of the valid lines so far.
    """

    def __init__(self, rules: InputRules) -> None:
        self.models: list[str] = []
        self.embedding_inputs = 0
        self._rules = rules
        self._last_model: str | None = None
        self._counts_inputs = rules.endpoint == _EMBEDDINGS
        match rules.endpoint:
            case "/v1/chat/completions":
                self._decode = _chat_decoder.decode
            case "/v1/embeddings":
                self._decode = _embedding_decoder.decode
            case _:
                self._decode = _plain_decoder.decode

    def check(self, raw: bytes, number: int) -> str | LineError:
        """The decoded custom_id, or the error of the line.

        A fast check accepts nearly every valid line. A slow check of the remaining lines decides on errors.
        """
        try:
            if not raw.isascii():
                str(raw, "utf-8")
            line = self._decode(raw)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            return self._examine(raw, number)
        body = line.body
        if (
            line.url != self._rules.endpoint
            or line.method != "POST"
            or body.stream
            or body.model != self._last_model
            or body.needed == _NULL
            or _has_more_openers(raw, self._rules.nesting)
        ):
            return self._examine(raw, number)
        if self._counts_inputs:
            self.embedding_inputs += _embedding_inputs(bytes(body.needed))
        return line.custom_id

    def _examine(self, raw: bytes, number: int) -> str | LineError:
        try:
            fields = self._fields(raw)
            custom_id = _text(fields, "custom_id")
            if (method := _text(fields, "method")) != "POST":
                _refuse(
                    "invalid_value", f"Invalid value: '{_quoted(method)}'. Value must be 'POST'.", "method"
                )
            if _text(fields, "url") != self._rules.endpoint:
                message = "The URL provided for this request does not match the batch endpoint."
                _refuse("invalid_url", message, "url")
            body = _required(fields, "body")
            if body[:1] != b"{":
                _refuse_type("body", "an object", body)
            self._examine_body(json_text.members(body, *_BODY_MEMBERS))
        except _InvalidLineError as error:
            return LineError(error.code, error.message, error.param, number)
        return custom_id

    def _fields(self, raw: bytes) -> dict[str, bytes]:
        nesting = self._rules.nesting
        try:
            json_text.validate(raw)
            is_deep = _has_more_openers(raw, nesting) and json_text.depth(raw) > nesting
        except json_text.TooDeepError:
            is_deep = True
        except json_text.NotUtf8Error:
            _refuse("invalid_json_line", "This line is not valid UTF-8.")
        except json_text.NotJsonError:
            _refuse("invalid_json_line", "This line is not parseable as valid JSON.")
        if is_deep:
            _refuse("nesting_too_deep", f"This line is nested more than {nesting} levels deep.")
        text = raw.strip()
        if text[:1] != b"{":
            kind = json_text.kind(text)
            _refuse(
                "invalid_type", f"Invalid type for this line: expected an object, but got {kind} instead."
            )
        return json_text.members(text, *_LINE_MEMBERS)

    def _examine_body(self, body: dict[str, bytes]) -> None:
        rules = self._rules
        if body.get("stream") == b"true":
            family = _FAMILY.get(rules.endpoint, rules.endpoint)
            message = f"{family}: Streaming is not supported in the Batch API."
            _refuse("streaming_unsupported", message, "body.stream")
        model = self._model(body)
        if rules.endpoint == _CHAT and body.get("messages", b"null") == b"null":
            _refuse("invalid_request", "Messages parameter is required.", "body.messages")
        if self._counts_inputs and body.get("input", b"null") == b"null":
            _refuse("invalid_request", "Input parameter is required.", "body.input")
        if model is not None:
            self._accept_model(model)
        if self._counts_inputs:
            self.embedding_inputs += _embedding_inputs(body["input"])

    def _model(self, body: dict[str, bytes]) -> str | None:
        value = body.get("model", b"null")
        if value in (b"null", b'""'):
            if self._rules.endpoint in _MODEL_REQUIRED:
                _refuse("invalid_request", "Model parameter is required.", "body.model")
            return None
        if value[:1] != b'"':
            _refuse_type("body.model", "a string", value)
        return json_text.string(value)

    def _accept_model(self, model: str) -> None:
        rules = self._rules
        if rules.models and model not in rules.models:
            message = f"The provided model '{_quoted(model)}' is not supported by the Batch API."
            _refuse("model_not_found", message, "body.model")
        if model not in self.models:
            if len(self.models) >= rules.models_per_file:
                allowed = rules.models_per_file
                most = "a single model" if allowed == 1 else f"at most {allowed} models"
                message = (
                    f"The model '{_quoted(model)}' for this request does not match the rest of the batch. "
                    f"Each batch must contain requests for {most}."
                )
                _refuse("mismatched_model", message, "body.model")
            self.models.append(model)
        self._last_model = model


def duplicate_custom_id(custom_id: str, number: int) -> LineError:
    """The error of a line with the custom_id of an earlier line."""
    message = (
        f"The custom_id '{_quoted(custom_id)}' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch."
    )
    return LineError("duplicate_custom_id", message, "custom_id", number)


def _refuse(code: str, message: str, param: str | None = None) -> NoReturn:
    raise _InvalidLineError(code, message, param)


def _refuse_type(param: str, expected: str, got: bytes) -> NoReturn:
    message = f"Invalid type for '{param}': expected {expected}, but got {json_text.kind(got)} instead."
    _refuse("invalid_type", message, param)


def _required(fields: dict[str, bytes], name: str) -> bytes:
    if name not in fields:
        _refuse("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    return fields[name]


def _text(fields: dict[str, bytes], name: str) -> str:
    value = _required(fields, name)
    if value[:1] != b'"':
        _refuse_type(name, "a string", value)
    return json_text.string(value)


def _quoted(text: str) -> str:
    """The text, shortened, with lone surrogates escaped."""
    short = text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "…"
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


def _has_more_openers(raw: bytes, nesting: int) -> bool:
    """False proves that the line is not nested deeper than `nesting`; True needs an exact check."""
    count = 0
    for opener in (b"{", b"["):
        at = raw.find(opener)
        while at >= 0:
            count += 1
            if count == _OPENERS_SEARCHED:
                return raw.count(b"{") + raw.count(b"[") > nesting
            at = raw.find(opener, at + 1)
    return count > nesting


def _embedding_inputs(text: bytes) -> int:
    """The number of inputs in `input`: a text, a list of texts, a list of tokens, or a list of such lists."""
    first = text[1:].lstrip()[:1] if text[:1] == b"[" else b""
    match first:
        case b'"':
            return json_text.elements(text)
        case b"[" if b'"' not in text:
            return text.count(b"[") - 1
        case b"[" | b"{" | b"]":
            return json_text.elements(text)
        case _:
            return 1
