"""JSON responses by msgspec, and OpenAI's error envelope (docs/openai-behaviour.md 6.1).

This module turns exceptions into a status, a body and headers. The body always has `error` with its four keys
and a message; responses of the files service add the sibling `detail`. `middleware` responds to unexpected
exceptions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import Response

from nightmill.errors import RequestError, UnavailableError

FILES_PATH = "/v1/files"
_ECHO_LENGTH = 100

encode = msgspec.json.Encoder().encode


class JsonResponse(Response):
    """`content` is any value that msgspec can encode. Keys keep their order."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


def list_document(data: Sequence[Mapping[str, Any]], *, has_more: bool, cursor: str = "id") -> dict[str, Any]:
    """A page of a list, as OpenAI's lists are.

    Args:
        cursor: the field of an item that a client sends to go on behind it.
    """
    return {
        "object": "list",
        "data": data,
        "first_id": data[0][cursor] if data else None,
        "last_id": data[-1][cursor] if data else None,
        "has_more": has_more,
    }


def error_body(
    message: str, *, error_type: str, param: str | None, code: str | None, path: str = ""
) -> dict[str, Any]:
    body: dict[str, Any] = {"error": {"message": message, "type": error_type, "param": param, "code": code}}
    if path == FILES_PATH or path.startswith(FILES_PATH + "/"):
        body["detail"] = {"message": message, "code": code}
    return body


def error_response(
    message: str,
    *,
    status: int,
    error_type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    path: str = "",
) -> JsonResponse:
    """A response with OpenAI's error envelope.

    Args:
        path: the path of the request; under `/v1/files` the body of a 4xx gets the sibling `detail`.
    """
    has_detail = 400 <= status < 500
    body = error_body(message, error_type=error_type, param=param, code=code, path=path if has_detail else "")
    return JsonResponse(body, status_code=status, headers=dict(headers or {}))


def from_request_error(error: RequestError, *, path: str = "") -> JsonResponse:
    return error_response(
        error.message,
        status=error.status,
        error_type=error.error_type,
        param=error.param,
        code=error.code,
        headers=error.headers,
        path=path,
    )


def from_unavailable_error(error: UnavailableError) -> JsonResponse:
    """A response whose message says when to try again too: people do not see its header."""
    message = error.message
    if "again" not in message:
        message = f"{message.rstrip('.')}; try again in {error.retry_after_s} s"
    return error_response(
        message,
        status=error.status,
        error_type="server_error",
        headers={"retry-after": str(error.retry_after_s)},
    )


def echo(text: str) -> str:
    """Text from a client, shortened for use in an error message."""
    return text if len(text) <= _ECHO_LENGTH else text[:_ECHO_LENGTH] + "…"
