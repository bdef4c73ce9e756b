"""What an answer that is no result reports, and how it stands in the error file. No I/O.

The shapes are those of OpenAI (`{"error": {...}}`), of servers with an error text or a bare error object
(`{"error": "..."}`, `{"object": "error", ...}`) and of FastAPI (`{"detail": ...}`). Only a short code and a
status are taken out of an answer; its message is not read.
"""

import re
from typing import Final

from nightmill.core import json_text
from nightmill.core.failure import AnswerError

_BAD_GATEWAY: Final = 502
_INVALID_ANSWER: Final = "invalid_upstream_answer"
_ERROR_OBJECT: Final = b'{"error": {"message": %b, "type": "server_error", "param": null, "code": "%b"}}'

_NULL: Final = b"null"
_STATUS_NAMES: Final = ("code", "status", "status_code")
_NAMES: Final = ("type", *_STATUS_NAMES)
_CODE: Final = re.compile(rb'"([A-Za-z0-9_.-]{1,64})"')
_STATUS: Final = re.compile(rb"[45][0-9][0-9]")


def failed_answer(body: bytes, *, status: int, result: str, is_json: bool) -> tuple[AnswerError, int, bytes]:
    """The error of an answer that is no result, and the status and the body of its row.

    A 2xx counts as the status that its error names, else as 502. The row has the body of the answer, or an
    error object if the body is not JSON, or is a 2xx without an error.

    Args:
        result: the member that is the result of the endpoint.
        is_json: whether the body is JSON.
    """
    error = _reported(json_text.without_lone_surrogates(body), status) if is_json else None
    if error is not None:
        return error, error.status, json_text.one_ascii_line(body)
    if not is_json:
        what = "was not valid JSON"
    elif json_text.is_object(body):
        what = f"had no {result!r}"
    else:
        what = "was not a JSON object"
    in_row = status if status >= 400 else _BAD_GATEWAY
    message = json_text.ascii_string(f"The upstream's answer (reported here with status {in_row}) {what}.")
    if 200 <= status < 300:
        error = AnswerError(_BAD_GATEWAY, _INVALID_ANSWER, is_json)
    else:
        error = AnswerError(status, None, is_json)
    return error, in_row, _ERROR_OBJECT % (message, _INVALID_ANSWER.encode("ascii"))


def _reported(body: bytes, status: int) -> AnswerError | None:
    """The error that valid JSON reports; None for a 2xx that reports none."""
    is_2xx = 200 <= status < 300
    fields = _members(body, "error", "detail", "object", *_NAMES)
    if is_2xx and fields.get("error", _NULL) == _NULL and fields.get("object") != b'"error"':
        return None
    for name in ("error", "detail"):
        inner = fields.get(name, _NULL)
        if inner.startswith(b"{"):
            fields = _members(inner, *_NAMES)
            break
    code = _CODE.fullmatch(fields.get("code", b"")) or _CODE.fullmatch(fields.get("type", b""))
    counts_as = _named_status(fields) if is_2xx else status
    return AnswerError(counts_as, None if code is None else code[1].decode("ascii"), is_json=True)


def _members(body: bytes, *names: str) -> dict[str, bytes]:
    return json_text.members(body, *names) if json_text.is_object(body) else {}


def _named_status(fields: dict[str, bytes]) -> int:
    for name in _STATUS_NAMES:
        value = fields.get(name, b"")
        if _STATUS.fullmatch(value):
            return int(value)
    return _BAD_GATEWAY
