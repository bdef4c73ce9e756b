"""Calls of the API's routes in this process, without a connection.

A call goes through the same middleware and routes as a request over HTTP, with the same limits and the same
errors, for a caller that is known already.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightmill.api.auth import CALLER_IN_SCOPE, Caller
from nightmill.errors import NotFoundError

Query = Mapping[str, str | int | float | bool | Iterable[str] | None]

_KEPT_HEADERS: Final = frozenset({b"host", b"user-agent"})
"""Of a browser's request, in the calls that a page makes: no other header may change what a call does."""
_FORWARDED_HEADERS: Final = _KEPT_HEADERS | {
    b"accept",
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"transfer-encoding",
    b"expect",
    b"range",
    b"if-range",
    b"last-event-id",
    b"idempotency-key",
}
"""Of a browser's request that a route of the API answers itself."""


class ApiRefusalError(Exception):
    """The API refused a call.

    Args:
        status: the HTTP status.
        code: the code of the error envelope.
        param: the parameter that is wrong.
    """

    def __init__(self, message: str, *, status: int, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


def path_of(*names: str) -> str:
    """A path whose names are quoted: `path_of("v1", "files", file_id)`.

    Raises:
        NotFoundError: a name, which may come from a form, is empty or has a slash: it would lead elsewhere.
    """
    if not all(name and "/" not in name for name in names):
        raise NotFoundError("There is nothing with such an id.")
    return "/" + "/".join(quote(name, safe="") for name in names)


class ApiCalls:
    """The API as one caller sees it.

    Args:
        api: the application of the API.
        request: the request of the browser; the address of its client goes into the audit log.
    """

    def __init__(self, api: ASGIApp, *, request: Request, caller: Caller) -> None:
        self._api = api
        self._request = request
        self._caller = caller

    @property
    def caller(self) -> Caller:
        return self._caller

    async def get(self, path: str, query: Query | None = None) -> Any:
        """The JSON document of a GET. Raises ApiRefusalError."""
        return _document(await self._call("GET", path, query=query))

    async def get_text(self, path: str, query: Query | None = None) -> str:
        """The text of a GET that does not answer with JSON. Raises ApiRefusalError."""
        status, _, body = await self._call("GET", path, query=query)
        if status >= 400:
            raise _refusal(status, body)
        return body.decode("utf-8", "replace")

    async def post(
        self,
        path: str,
        body: Any = None,
        query: Query | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON document of a POST with a JSON body. Raises ApiRefusalError."""
        sent = b"" if body is None else msgspec.json.encode(body)
        return _document(await self._call("POST", path, query=query, body=sent, added=headers))

    async def patch(self, path: str, body: Any) -> Any:
        """As `post`."""
        return _document(await self._call("PATCH", path, body=msgspec.json.encode(body)))

    async def delete(self, path: str, query: Query | None = None) -> Any:
        """The JSON document of a DELETE. Raises ApiRefusalError."""
        return _document(await self._call("DELETE", path, query=query))

    def forward(self, path: str, query: Query | None = None) -> ASGIApp:
        """An application that answers the browser's own request with another route of the API, body, headers
        and stream included: for uploads and downloads."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [pair for pair in scope["headers"] if pair[0] in _FORWARDED_HEADERS]
            inner = {**scope, **self._addressed(path, query), "headers": headers, "root_path": ""}
            await self._api(inner, receive, send)

        return app

    def _addressed(self, path: str, query: Query | None) -> dict[str, Any]:
        given = {name: _as_text(value) for name, value in (query or {}).items() if value is not None}
        return {
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": urlencode(given, doseq=True).encode(),
            CALLER_IN_SCOPE: self._caller,
        }

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes = b"",
        added: Mapping[str, str] | None = None,
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        outer = self._request.scope
        headers = [pair for pair in outer["headers"] if pair[0] in _KEPT_HEADERS]
        headers += [(name.lower().encode(), value.encode()) for name, value in (added or {}).items()]
        if body:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope: Scope = {
            "type": "http",
            "asgi": outer["asgi"],
            "http_version": "1.1",
            "method": method,
            "scheme": outer["scheme"],
            "root_path": "",
            "headers": headers,
            "client": outer.get("client"),
            "server": outer.get("server"),
            "state": dict(outer.get("state", {})),
            **self._addressed(path, query),
        }
        status, answered, chunks = 0, list[tuple[bytes, bytes]](), list[bytes]()
        has_body = True

        async def receive() -> Message:
            nonlocal has_body
            if not has_body:
                # The caller is there until it has the answer; a disconnect would end what looks for it.
                await asyncio.Event().wait()
            has_body = False
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], list(message["headers"])
            else:
                chunks.append(message.get("body", b""))

        await self._api(scope, receive, send)
        return status, answered, b"".join(chunks)


def _as_text(value: Any) -> str | list[str]:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    return [str(item) for item in value]


def _document(answer: tuple[int, list[tuple[bytes, bytes]], bytes]) -> Any:
    status, _, body = answer
    if status >= 400:
        raise _refusal(status, body)
    return msgspec.json.decode(body) if body else None


def _refusal(status: int, body: bytes) -> ApiRefusalError:
    try:
        error = msgspec.json.decode(body)["error"]
        return ApiRefusalError(
            error["message"], status=status, code=error.get("code"), param=error.get("param")
        )
    except (msgspec.DecodeError, KeyError, TypeError):
        message = f"The API answered with status {status} and no message."
        return ApiRefusalError(message, status=status, code=None, param=None)
