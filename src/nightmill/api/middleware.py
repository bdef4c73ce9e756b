"""ASGI middleware around all routes.

`RequestMiddleware` is the outer layer: it gives the request an id, normalizes its path, answers HEAD as GET
without a body, adds the headers that OpenAI sends, refuses unsupported codings and expectations, and turns
unexpected errors into a response.
`AuthenticationMiddleware` is the inner layer: it checks the key and the rate limit before the body is read.
For any error in a route, the client gets an envelope with a request id, or a closed connection if the
response had already begun.
"""

import logging
import re
import traceback
from collections.abc import Iterable
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightmill.api.auth import (
    CALLER_IN_SCOPE,
    PROJECT_HEADER,
    REQUEST_ID_IN_SCOPE,
    KeyCache,
    RateLimit,
    acting_for,
)
from nightmill.api.context import ApiContext
from nightmill.api.envelope import echo, error_response, from_request_error, from_unavailable_error
from nightmill.api.upload_limiter import allow_early_answer
from nightmill.errors import RequestError, UnavailableError

PATH_AS_SENT = "nightmill.path"
METHOD_AS_SENT = "nightmill.method"
OVER_CONNECTION_LIMIT = "nightmill.busy"
"""In the scope of a request whose connection exceeds `api.max_connections` (set by `connection`)."""
OPENAI_VERSION = b"2020-10-01"
PUBLIC_PATHS = frozenset(
    {
        "/health",
        "/ready",
        "/version",
        "/metrics",
        "/openapi.json",
        "/nightmill/openapi.json",
        "/docs",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
    }
)

_SINGLE = (b"host", b"content-type", b"authorization", b"api-key", b"idempotency-key", PROJECT_HEADER)
"""Headers of which two different values would leave open which one counts."""
_SLASHES = re.compile("/{2,}")
_logger = logging.getLogger("nightmill.api")


class _HeadAnsweredError(Exception):
    """The headers of a HEAD response are sent; the route can stop."""


class RequestMiddleware:
    """Request id, path, HEAD, response headers, unexpected errors."""

    def __init__(self, app: ASGIApp, *, context: ApiContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = perf_counter()
        request_id = "req_" + self._context.random(16).hex()
        method, path = scope["method"], scope["path"]
        is_head = method == "HEAD"
        scope = {
            **scope,
            "method": "GET" if is_head else method,
            "path": normalized_path(path),
            PATH_AS_SENT: path,
            METHOD_AS_SENT: method,
            REQUEST_ID_IN_SCOPE: request_id,
        }
        receive, send = allow_early_answer(scope, receive, send)
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                elapsed_ms = int((perf_counter() - started_at) * 1_000)
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", b"%d" % elapsed_ms),
                    (b"openai-version", OPENAI_VERSION),
                    (b"x-content-type-options", b"nosniff"),
                ]
            elif is_head:
                await send({"type": "http.response.body", "body": b""})
                raise _HeadAnsweredError
            await send(message)

        try:
            refusal = (
                self._over_connection_limit(scope)
                or self._headers_too_large(scope)
                or _refused_headers(scope)
            )
            await (refusal or self._app)(scope, receive, send_with_headers)
        except _HeadAnsweredError:
            return
        except ClientDisconnect:
            return
        except Exception as error:
            log_unexpected(request_id, error)
            if has_started:
                raise
            response = error_response(
                "The server had an error while processing your request. "
                f"Please try again, and tell the operator the request id {request_id} if it stays so.",
                status=500,
                error_type="server_error",
            )
            try:
                await response(scope, receive, send_with_headers)
            except _HeadAnsweredError:
                return

    def _over_connection_limit(self, scope: Scope) -> ASGIApp | None:
        if OVER_CONNECTION_LIMIT not in scope or scope["path"] in PUBLIC_PATHS:
            return None
        most = self._context.settings.api.max_connections
        return error_response(
            f"{most} connections are being answered already. Please try again in a moment.",
            status=503,
            error_type="server_error",
            headers={"retry-after": "1"},
        )

    def _headers_too_large(self, scope: Scope) -> ASGIApp | None:
        size_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size_bytes += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        most = self._context.settings.api.max_header_bytes
        if size_bytes <= most:
            return None
        return error_response(
            f"The request line and headers have {size_bytes} bytes; at most {most} are accepted.", status=431
        )


class AuthenticationMiddleware:
    """Puts the caller of a request into its scope, or refuses the request. `PUBLIC_PATHS` need no key.

    An admin key acts for the project that the header `x-nightmill-project` names.

    A request that has a caller already was made by this process: by the dashboard, for a caller it knows.
    """

    def __init__(self, app: ASGIApp, *, context: ApiContext) -> None:
        self._app = app
        self._keys = KeyCache(context)
        self._rates = RateLimit(context.settings.api.requests_per_minute, clock=context.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or CALLER_IN_SCOPE in scope:
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            caller = await self._keys.caller(headers)
            self._rates.take(caller)
            caller = acting_for(caller, headers)
        except RequestError as error:
            await from_request_error(error)(scope, receive, send)
        except UnavailableError as error:
            await from_unavailable_error(error)(scope, receive, send)
        else:
            scope[CALLER_IN_SCOPE] = caller
            await self._app(scope, receive, send)


def normalized_path(path: str) -> str:
    """`/v1//files/` -> `/v1/files`, as sent by hand-written clients; a redirect would not work for a POST."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path[:-1] if len(path) > 1 and path[-1] == "/" else path


def _refused_headers(scope: Scope) -> ASGIApp | None:
    """The refusal of headers that are ambiguous or ask for an unsupported coding or behaviour, or None.

    Without it, a coded body would be read as if it were plain. `connection` checks the headers that frame a
    body.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    path = scope["path"]
    values: dict[bytes, set[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, set()).add(value)
    for name in _SINGLE:
        if len(values.get(name, ())) > 1:
            title = name.decode().title()
            message = (
                f"The header '{title}' was sent more than once, with different values. Please send it once."
            )
            return error_response(message, status=400, param=title, code="duplicate_parameter", path=path)
    if expectation := _other_token(values.get(b"expect", ()), b"100-continue"):
        message = f"Unsupported expectation: '{echo(expectation)}'. Only '100-continue' is supported."
        return error_response(message, status=417, param="Expect", path=path)
    if coding := _other_token(values.get(b"transfer-encoding", ()), b"chunked"):
        message = f"Unsupported transfer encoding: '{echo(coding)}'. Only 'chunked' is supported."
        return error_response(
            message, status=501, error_type="invalid_request_error", param="Transfer-Encoding", path=path
        )
    has_body = b"transfer-encoding" in values or values.get(b"content-length", {b"0"}) != {b"0"}
    if has_body and (coding := _other_token(values.get(b"content-encoding", ()), b"identity")):
        message = f"Unsupported content encoding: '{echo(coding)}'. Please send the body without compression."
        return error_response(
            message,
            status=415,
            param="Content-Encoding",
            code="unsupported_content_encoding",
            headers={"accept-encoding": "identity"},
            path=path,
        )
    return None


def _other_token(values: Iterable[bytes], known: bytes) -> str | None:
    """The first token of the comma lists that is not `known`, in any case."""
    for value in values:
        for token in value.lower().split(b","):
            if (token := token.strip()) not in (known, b""):
                return token.decode("latin-1")
    return None


def log_unexpected(source: str, error: Exception) -> None:
    """Logs the type and the traceback, without the message: that may contain data of the client.

    Args:
        source: the id of the request, or another name for where it happened.
    """
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("%s ended in an unexpected %s\n%s", source, type(error).__name__, frames)
