"""Time and size limits of one client connection, responses to invalid HTTP, and a fast path for large bodies.

A connection closes when its request head is late or endless, or when its client does not read the response.
Refusals here have OpenAI's error envelope. Bytes after a request never cut or change the response to it.
Offers of another protocol (`Upgrade`) are ignored, as RFC 9110 allows, and the request is read as HTTP/1.1.
`upload_limiter` and `body` limit bodies, `middleware` checks keys and rates.

The class extends uvicorn's protocol and uses its internal fields. tests/api/test_uvicorn_contract.py lists
them, and pyproject.toml bounds the version of uvicorn.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from nightmill.api.envelope import encode, error_body
from nightmill.api.middleware import OPENAI_VERSION, OVER_CONNECTION_LIMIT
from nightmill.settings import ApiSettings

_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
_OVERHEAD_BYTES = 64 << 10
"""The limit for framing (chunk sizes, extensions, trailers) between two pieces of a body."""
_LARGE_BYTES = 1 << 20
"""A body of at least this size bypasses the parser."""
_TARGET_BYTES = (1 << 16) - 1
"""The longest request target that the URL parser reads."""
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#@]+)", re.IGNORECASE)
_HTTP_2 = "This server supports HTTP/1.1, but the connection began with HTTP/2. Please send HTTP/1.1."
_CONNECT = "This server is not a proxy and does not support CONNECT."


class _RefusedHeadError(Exception):
    """A request head that is refused while it is parsed.

    Args:
        status: the HTTP status.
        message: the problem and the remedy.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def http_config(app: ASGIApp, settings: ApiSettings, **overrides: Any) -> uvicorn.Config:
    """The uvicorn configuration of the API, without uvicorn's own headers and log lines."""

    class LimitedConnection(Connection):
        limits = settings

    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    return uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # clients can cause uvicorn's warnings
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        backlog=2_048,
        **overrides,
    )


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leaves out the tracebacks of requests that a stop cancels."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Connection(HttpToolsProtocol):
    """A connection in one of four states: idle, reading a request head, handling a request, or refused.

    A refused connection only waits for the client to close it.
    """

    limits: ClassVar[ApiSettings]
    parser: Any

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_over_limit = False
        self._is_refused = False
        self._is_reading_head = True
        self._overhead_bytes = 0
        self._body_bytes_left = 0
        """The bytes of a large body that are still to arrive; 0 for other bodies."""
        self.idle_since: float | None = None
        """The loop time since which no request head is complete; None while handling a request."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # --- calls from the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_over_limit = (
            len(self.connections) > self.limits.max_connections and not self._close_oldest_idle()
        )
        self.idle_since = self.loop.time()
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = self._linger_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead_bytes += len(data)
        if self._is_refused:
            if self._overhead_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        if self._body_bytes_left:
            data = self._receive_body(data)
            if not data:
                return
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_reading_head or not self._is_handling_request:
            if self._overhead_bytes > self.limits.max_header_bytes:
                self._refuse(
                    431, f"The request line and headers exceed {self.limits.max_header_bytes} bytes."
                )
            elif self._head_timer is None:
                self._start_head_timer()
        elif self._overhead_bytes > _OVERHEAD_BYTES:
            self.send_400_response("There is too much around the pieces of the request body.")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True keeps the connection open: the client sent whole requests and waits for the responses."""
        if self.scheme == "https" or not self._is_handling_request or self.cycle.more_body:
            return None
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # --- calls from the parser ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_reading_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_reading_head:  # a trailer of a body with chunks must not become a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_parse` gives the head to the parser again
        self._read_target()
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False
        self._is_reading_head = False
        self.idle_since = None
        self._overhead_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._is_over_limit:
            self.scope[OVER_CONNECTION_LIMIT] = True  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self._is_over_limit:
            self.cycle.keep_alive = False
        self._body_bytes_left = self._large_body_bytes()

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        if self._body_bytes_left:
            self._body_bytes_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_handling_request:
            self._overhead_bytes = 0
            self.idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Ends the connection after unparsable bytes."""
        self._end(400, f"We could not parse your request: {msg}")

    # --- parsing -----------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Parses the bytes.

        At a request with an `Upgrade` header the parser stops and leaves out the body. Then a new parser
        reads the head again, without that header, and the bytes after it.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._end(405, _CONNECT)
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._restart_parser()
            except httptools.HttpParserError as error:
                match error.__context__:
                    case _RefusedHeadError() as refused:
                        self._end(refused.status, refused.message)
                    case None if self.parser.get_method() == b"PRI":
                        self._end(400, _HTTP_2)
                    case None:
                        self.send_400_response(f"{error}.")
                    case _:
                        self.send_400_response("The request target is not a path or a URL.")
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _read_target(self) -> None:
        """Splits a target in absolute form into a path and the `Host` header (RFC 9112 3.2.2)."""
        if len(self.url) > _TARGET_BYTES:
            message = f"The URL has {len(self.url)} bytes; at most {_TARGET_BYTES} are accepted."
            raise _RefusedHeadError(414, message)
        if match := _ABSOLUTE_FORM.match(self.url):
            path = self.url[match.end() :]
            self.url = path if path.startswith(b"/") else b"/" + path
            self.headers[:] = [header for header in self.headers if header[0] != b"host"]
            self.headers.append((b"host", match[1]))

    def _end(self, status: int, message: str) -> None:
        """Ends the connection: the bytes that follow the last request cannot be read as a request."""
        self._is_refused = True
        if not self._is_handling_request:
            self._refuse(status, message)
        elif not self.cycle.more_body:
            # The earlier requests are complete: their responses are sent, then the connection closes.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif self.pipeline or self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(status, message)
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    # --- large bodies ------------------------------------------------------------------------------------

    def _large_body_bytes(self) -> int:
        """The size of a large body that begins now, else 0. The parser refuses ambiguous lengths."""
        if self.pipeline:
            return 0
        headers = dict(self.headers)
        if b"transfer-encoding" in headers:
            return 0
        size_bytes = int(headers.get(b"content-length", b"0"))
        return size_bytes if size_bytes >= _LARGE_BYTES else 0

    def _receive_body(self, data: bytes) -> bytes:
        """Takes the bytes of the body and returns the rest, which belongs to the next request.

        This avoids the three copies that the parser and uvicorn's buffer would make.
        """
        self._overhead_bytes = 0
        body = data if len(data) <= self._body_bytes_left else data[: self._body_bytes_left]
        self._body_bytes_left -= len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            # uvicorn only reads the length and the bytes, then replaces the buffer by an empty one.
            cycle.body = cast("bytearray", bytes(cycle.body) + body if cycle.body else body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()
        if not self._body_bytes_left:
            self._restart_parser()
            self.on_message_complete()
        return data[len(body) :]

    def _restart_parser(self) -> None:
        """Replaces the parser, which still waits for the body that bypassed it."""
        self.parser = type(self.parser)(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    # --- refusals and timeouts ---------------------------------------------------------------------------

    @property
    def _is_handling_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None at first, against its type

    def _close_oldest_idle(self) -> bool:
        """Closes the connection that has been idle for longest. False when no connection is idle."""
        connections = cast("set[object]", self.connections)
        oldest, idle_since = None, self.loop.time()
        for other in connections:
            if not isinstance(other, Connection) or other.transport.is_closing():
                continue
            if other.idle_since is not None and other.idle_since < idle_since:
                oldest, idle_since = other, other.idle_since
        if oldest is None:
            return False
        oldest.transport.close()
        return True

    def _refuse(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Responds without the app and closes the connection.

        The connection lingers, since a close with bytes of the client in transit would destroy the response.
        """
        self._is_refused = True
        self._unset_keepalive_if_required()
        body = encode(error_body(message, error_type="invalid_request_error", param=None, code=None))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": f"req_{secrets.token_hex(16)}",
            "openai-version": OPENAI_VERSION.decode(),
            "x-content-type-options": "nosniff",
            **(headers or {}),
        }
        head = [b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[status], *head, b"\r\n", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.header_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._is_refused or self.transport.is_closing():
            return
        if self._is_handling_request:
            self._start_head_timer()  # a pipelined request may wait for its predecessor
        elif self._overhead_bytes:
            waited = f"{self.limits.header_s:g} seconds"
            self._refuse(408, f"The request's headers did not arrive within {waited}. Please send it again.")
        else:
            self.transport.close()

    def _start_write_timer(self) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(
            self.limits.download_idle_s, self._on_write_timeout, waiting_bytes
        )

    def _on_write_timeout(self, waited_bytes: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < waited_bytes:
            self._start_write_timer()
        else:
            self.transport.abort()
