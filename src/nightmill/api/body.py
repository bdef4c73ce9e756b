"""JSON request bodies: read under a limit and a deadline, parsed, checked.

Promise: a body over `api.max_json_bytes` is refused before it is held, whether or not its length was
announced; whatever the bytes are, the answer is a `RequestError`. Not its duty: multipart bodies
(`multipart`).
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

M = TypeVar("M", bound=BaseModel)

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
    """Args:
        allowed: what settings admit, by the names `checks.one_of` was given.

    Raises:
        RequestError: anything about the body is wrong; an empty body counts as `{}`.
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
        raise to_request_error(error.errors(include_url=False)) from None


def require_json(request: Request) -> None:
    """Refuses a body that says it is something else. One that says nothing is taken for JSON."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in {"", "application/json"} or (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        return
    message = (
        f"Unsupported content type: '{echo(media_type)}'. This API method only accepts 'application/json' "
        f"requests, but you specified the header 'Content-Type: {echo(content_type)}'. "
        "Please try again with a supported content type."
    )
    raise RequestError(message, code="unsupported_content_type")


async def _read(request: Request, settings: ApiSettings) -> bytes:
    most = settings.max_json_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most:
        raise _too_large(most, int(announced[:20]))
    content = bytearray()
    try:
        async with asyncio.timeout(settings.upload_idle_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise _too_large(most, len(content))
    except TimeoutError:
        waited = f"{settings.upload_idle_s:g} seconds"
        raise SlowBodyError(
            f"The request body did not arrive within {waited}. Please send it again."
        ) from None
    return bytes(content)


def _too_large(most: int, got: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"Maximum content size limit ({most}) exceeded ({got} bytes read)")
