"""What happens to every request before and after its route, as plain ASGI middleware.

`RequestMiddleware` is the outer one: it gives the request an id, normalises its path, answers HEAD as GET
without a body, adds the headers that OpenAI sends, and turns unexpected errors into an answer.
`AuthenticationMiddleware` is the inner one: it checks the key and the rate limit before anything else of the
request is read. Whatever a route does, the client gets an envelope with a request id, or a connection that
breaks when a download was already under way.
"""

import logging
import re
import traceback
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightmill.api.auth import ASKER_IN_SCOPE, REQUEST_ID_IN_SCOPE, KeyRing, RateLimit
from nightmill.api.context import ApiContext
from nightmill.api.envelope import error_response, from_request_error, from_unavailable_error
from nightmill.api.upload_limiter import answering_early
from nightmill.errors import RequestError, UnavailableError

PATH_AS_SENT = "nightmill.path"
METHOD_AS_SENT = "nightmill.method"
BUSY = "nightmill.busy"
"""In the scope of a request whose connection is one too many (`connection`)."""
OPENAI_VERSION = b"2020-10-01"
PUBLIC_PATHS = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs"})

_SLASHES = re.compile("/{2,}")
_logger = logging.getLogger("nightmill.api")


class _HeadAnsweredError(Exception):
    """The headers of a HEAD are out; the route need not go on."""


class RequestMiddleware:
    """The outermost layer."""

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
            "path": evened(path),
            PATH_AS_SENT: path,
            METHOD_AS_SENT: method,
            REQUEST_ID_IN_SCOPE: request_id,
        }
        receive, send = answering_early(scope, receive, send)
        has_started = False

        async def send_on(message: Message) -> None:
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
            refusal = self._one_too_many(scope) or self._headers_too_large(scope)
            await (refusal or self._app)(scope, receive, send_on)
        except _HeadAnsweredError:
            return
        except ClientDisconnect:
            return
        except Exception as error:
            _log_unexpected(request_id, error)
            if has_started:
                raise
            response = error_response(
                "The server had an error while processing your request. "
                f"Please try again, and tell the operator the request id {request_id} if it stays so.",
                status=500,
                error_type="server_error",
            )
            try:
                await response(scope, receive, send_on)
            except _HeadAnsweredError:
                return

    def _one_too_many(self, scope: Scope) -> ASGIApp | None:
        if BUSY not in scope or scope["path"] in PUBLIC_PATHS:
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
    """Lets a request in with the project it belongs to. Knows what is open to all."""

    def __init__(self, app: ASGIApp, *, context: ApiContext) -> None:
        self._app = app
        self._keys = KeyRing(context)
        self._rates = RateLimit(context.settings.api.requests_per_minute, clock=context.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._keys.caller(dict(scope["headers"]))
            self._rates.take(caller)
        except RequestError as error:
            await from_request_error(error)(scope, receive, send)
        except UnavailableError as error:
            await from_unavailable_error(error)(scope, receive, send)
        else:
            scope[ASKER_IN_SCOPE] = caller
            await self._app(scope, receive, send)


def evened(path: str) -> str:
    """`/v1//files/` -> `/v1/files`: hand-written clients send such paths, and a POST survives no redirect."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path[:-1] if len(path) > 1 and path[-1] == "/" else path


def _log_unexpected(request_id: str, error: Exception) -> None:
    """Where and what kind, without the exception's own words: those may hold what the client sent."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("%s ended in an unexpected %s\n%s", request_id, type(error).__name__, frames)
