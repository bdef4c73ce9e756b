"""JSON request bodies and the Idempotency-Key header.

Bodies are read under a size limit and a deadline, parsed, and validated. A body over `api.max_json_bytes` is
refused before it is held in memory, with or without a Content-Length header. Invalid bytes always lead to a
`RequestError`. `multipart` reads multipart bodies.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from fastapi import Request
from pydantic import BaseModel, ValidationError

from nightmill.api.envelope import echo
from nightmill.api.violations import to_request_error
from nightmill.errors import RequestError, TooLargeError
from nightmill.settings import ApiSettings
from nightmill.store import Idempotency

M = TypeVar("M", bound=BaseModel)

_IDEMPOTENCY_KEY_LENGTH = 255
_NOT_JSON = "We could not parse the JSON body of your request. It is not JSON in UTF-8, or nested too deeply."


class SlowBodyError(RequestError):
    """The body did not arrive in time. Clients send a 408 again."""

    status: ClassVar[int] = 408


class BodyTooLargeError(TooLargeError):
    """The body is too large for the route; `server_error` as at OpenAI (docs/openai-behaviour.md 6.2)."""

    error_type: ClassVar[str] = "server_error"


async def read_json(
    request: Request,
    model: type[M],
    *,
    settings: ApiSettings,
    allowed: Mapping[str, Any] | None = None,
) -> M:
    """The validated body; an empty body counts as `{}`.

    Args:
        allowed: the values that settings allow, by the setting names given to `wire.one_of`.

    Raises:
        RequestError: the body is invalid, too large or too slow.
    """
    require_json(request)
    content = await _read(request, settings)
    try:
        parsed: object = msgspec.json.decode(content) if content.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise RequestError(_NOT_JSON) from None
    if not isinstance(parsed, dict):
        message = "We could not parse the JSON body of your request. It is not a JSON object."
        raise RequestError(message)
    try:
        return model.model_validate(parsed, context=allowed)
    except ValidationError as error:
        raise to_request_error(error.errors(include_url=False), model=model) from None


def require_json(request: Request) -> None:
    """Refuses a body of another media type. A body without a media type counts as JSON."""
    media_type = media_type_of(request)
    if media_type in {"", "application/json"} or (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        return
    raise unsupported_media_type(request, accepted="application/json")


def media_type_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported_media_type(request: Request, *, accepted: str) -> RequestError:
    content_type = request.headers.get("content-type", "")
    message = (
        f"Unsupported content type: '{echo(media_type_of(request))}'. This API method only accepts "
        f"'{accepted}' requests, but you specified the header 'Content-Type: {echo(content_type)}'. "
        "Please try again with a supported content type."
    )
    return RequestError(message, code="unsupported_content_type")


def announced_bytes(request: Request) -> int:
    """The Content-Length; 0 where the header is absent or no number."""
    text = request.headers.get("content-length", "")
    return int(text[:20]) if text.isdecimal() else 0


def idempotency_of(request: Request, *, fingerprint: str) -> Idempotency | None:
    """The Idempotency-Key header, with which a repeated create returns the first response; None without one.

    OpenAI documents no such header. Its clients repeat creates whose response was lost, and the header keeps
    the repetition from making a second object.

    Args:
        fingerprint: a hash of the request; the same key with another fingerprint is a conflict.

    Raises:
        RequestError: the key is too long or has characters other than printable ASCII.
    """
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > _IDEMPOTENCY_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        length = _IDEMPOTENCY_KEY_LENGTH
        message = f"Invalid header 'Idempotency-Key': expected up to {length} printable ASCII characters."
        raise RequestError(message, param="Idempotency-Key", code="invalid_value")
    return Idempotency(key, fingerprint)


async def _read(request: Request, settings: ApiSettings) -> bytes:
    max_bytes = settings.max_json_bytes
    if (size_bytes := announced_bytes(request)) > max_bytes:
        raise _too_large(max_bytes, size_bytes)
    content = bytearray()
    try:
        async with asyncio.timeout(settings.upload_idle_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_bytes:
                    raise _too_large(max_bytes, len(content))
    except TimeoutError:
        waited = f"{settings.upload_idle_s:g} seconds"
        raise SlowBodyError(
            f"The request body did not arrive within {waited}. Please send it again."
        ) from None
    return bytes(content)


def _too_large(max_bytes: int, size_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"Maximum content size limit ({max_bytes}) exceeded ({size_bytes} bytes read)")
