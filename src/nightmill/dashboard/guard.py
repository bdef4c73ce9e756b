"""ASGI middleware around the dashboard: sessions, CSRF, and the headers that keep a browser strict.

A request that changes something and that a browser could have been tricked into must come from a page of
this server and carry the token of the session: in the header `X-CSRF-Token`, or in the field `csrf` of an
ordinary form. A form with files is not read here; a browser without scripts proves with its `Origin` that it
sent the form from a page of this server.
"""

from collections.abc import Mapping
from hmac import compare_digest
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightmill.api.auth import READ_METHODS, RateLimit
from nightmill.api.middleware import OVER_CONNECTION_LIMIT, log_unexpected
from nightmill.dashboard.pages import STATIC_PATH, caching, error_page, here_of, redirect
from nightmill.dashboard.sessions import SESSION_IN_SCOPE, Session, Sessions
from nightmill.errors import AuthenticationError, TooManyError, UnavailableError

CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf"
SIGN_IN: Final = "ui/sign-in"
PUBLIC: Final = frozenset({"/ui/sign-in", "/ui/theme"})
"""Paths that need no session, beside those below STATIC_PATH."""
MOST_FORM_BYTES: Final = 2 << 20

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    # With no-referrer, forms would send `Origin: null`.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class GuardMiddleware:
    """Refuses requests without a session or from other pages, and adds the headers."""

    def __init__(self, app: ASGIApp, *, sessions: Sessions, rates: RateLimit) -> None:
        self._app = app
        self._sessions = sessions
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                names = {name for name, _ in message["headers"]}
                added = [pair for pair in _HEADERS if pair[0] not in names]
                if b"cache-control" not in names:
                    added.append((b"cache-control", caching(scope, message["status"])))
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:
            log_unexpected("a page of the dashboard", error)
            if has_started:
                raise
            message = "The server had an error while it made this page. Please load it again."
            await error_page(Request(scope), message, status=500)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(STATIC_PATH):
            await self._app(scope, receive, send)
            return
        if OVER_CONNECTION_LIMIT in scope:
            message = (
                "The server answers as many connections as it may. Please load the page again in a moment."
            )
            await error_page(Request(scope), message, status=503)(scope, receive, send)
            return
        if path in PUBLIC:
            await self._app(scope, receive, send)
            return
        try:
            session = await self._sessions.of(scope)
            self._rates.take(session.caller)
        except AuthenticationError as error:
            await _sent_to_sign_in(Request(scope), error)(scope, receive, send)
            return
        except TooManyError as error:
            response = error_page(Request(scope), error.message, status=error.status)
            response.headers.update(error.headers)
            await response(scope, receive, send)
            return
        except UnavailableError as error:
            await error_page(Request(scope), error.message, status=503)(scope, receive, send)
            return
        scope[SESSION_IN_SCOPE] = session
        if scope["method"] not in READ_METHODS:
            refusal, receive = await _checked(Request(scope, receive), session)
            if refusal is not None:
                await error_page(Request(scope), refusal, status=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _sent_to_sign_in(request: Request, error: AuthenticationError) -> Response:
    """A person goes to the sign-in page; a program gets the error."""
    if request.method in READ_METHODS and "text/html" in request.headers.get("accept", ""):
        return redirect(request, SIGN_IN, {"next": here_of(request)})
    return error_page(request, error.message, status=401)


async def _checked(request: Request, session: Session) -> tuple[str | None, Receive]:
    """Why a request that changes something is refused, or None; and its body, to be read again."""
    receive = request.receive
    if is_foreign(request.headers):
        return "This request comes from a page of another server and was refused.", receive
    if not session.is_ambient:
        return None, receive
    given = request.headers.get(CSRF_HEADER)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given is None and kind == "multipart/form-data" and _is_own_origin(request.headers):
        return None, receive
    if given is None and kind == "application/x-www-form-urlencoded":
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_FORM_BYTES:
                return f"A form may have at most {MOST_FORM_BYTES:,} bytes.", receive
        given = dict(parse_qsl(body.decode("latin-1"))).get(CSRF_FIELD)
        receive = _replayed(body, receive)
    if given is None or not compare_digest(given.encode(), session.csrf_token.encode()):
        return "The page that sent this form is out of date. Load it again and repeat the action.", receive
    return None, receive


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether the browser says that another origin sent the request. Behind a proxy, only the browser knows
    its own origin, and says so in `Sec-Fetch-Site` wherever the page was loaded with TLS or from loopback.
    Elsewhere a proxy may have removed the port from `Host`."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    if "origin" not in headers or _is_own_origin(headers):
        return False
    host = headers.get("host", "").strip().lower()
    return not host or host != urlsplit(headers["origin"]).netloc.lower().rpartition(":")[0]


def _is_own_origin(headers: Mapping[str, str]) -> bool:
    if headers.get("sec-fetch-site") == "same-origin":
        return True
    origin = urlsplit(headers.get("origin", "")).netloc.lower()
    hosts = (headers.get("host", ""), headers.get("x-forwarded-host", ""))
    return bool(origin) and origin in (host.strip().lower() for host in hosts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what the connection has."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
