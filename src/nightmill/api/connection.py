"""One client's connection: how long it may take, how much it may say, what it hears when it is no HTTP.

Duty: the limits that lie below a request, and the short way of a large body. Promise: a connection that sends
no whole head in time, an endless one, or takes nothing of its answer, ends; whatever is refused here hears an
envelope, and an answer that is under way is never cut or mixed up by what the client sends behind its
request. Not its duty: bodies (`upload_limiter`, `body`), keys and rates (`middleware`).
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from nightmill.api.envelope import encode, error_body
from nightmill.api.middleware import BUSY, OPENAI_VERSION
from nightmill.settings import ApiSettings

_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
_LOOSE_BYTES = 64 << 10
"""Framing around a body (chunk sizes, their extensions, trailers) between two pieces of it."""
_LARGE_BYTES = 1 << 20
"""A body of at least so many bytes goes past the parser."""


def http_config(app: ASGIApp, settings: ApiSettings, **others: Any) -> uvicorn.Config:
    """How uvicorn serves the API: without words of its own on the wire or in the log."""

    class LimitedConnection(Connection):
        limits = settings

    return uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what any client can cause is no warning
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        backlog=2_048,
        **others,
    )


class Connection(HttpToolsProtocol):
    """A connection is in one of four states: waiting for a head, reading one, at work on a request, or deaf
    (refused, and only waiting for the client to leave)."""

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
        self._is_busy = False
        self._is_deaf = False
        self._reads_head = True
        self._loose_bytes = 0
        self._left_bytes = 0
        """Of a large body whose length was announced: what is still to come."""
        self.idle_since: float | None = None
        """Since when it is without a whole head; None while a request is at work."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # --- the transport's calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_busy = len(self.connections) > self.limits.max_connections and not self._make_room()
        self.idle_since = self.loop.time()
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = self._linger_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        if self._is_deaf:
            if self._loose_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        if self._left_bytes:
            data = self._take_body(data)
            if not data:
                return
        super().data_received(data)
        if self._is_deaf or self.transport.is_closing():
            return
        if self._reads_head or not self._is_at_work:
            if self._loose_bytes > self.limits.max_header_bytes:
                self._refuse(
                    431, f"The request line and headers exceed {self.limits.max_header_bytes} bytes."
                )
            elif self._head_timer is None:
                self._start_head_timer()
        elif self._loose_bytes > _LOOSE_BYTES:
            self.send_400_response("There is too much around the pieces of the request body.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # --- the parser's calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reads_head = True

    def on_headers_complete(self) -> None:
        self._reads_head = False
        self.idle_since = None
        self._loose_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._is_busy:
            self.scope[BUSY] = True  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self._is_busy:
            self.cycle.keep_alive = False
        self._left_bytes = self._announced_bytes()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        if self._left_bytes:
            self._left_bytes -= len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_at_work:
            self._loose_bytes = 0
            self.idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """What the client sent can't be parsed any further."""
        self._is_deaf = True
        if not self._is_at_work:
            self._refuse(400, f"We could not parse your request: {msg}")
        elif not self.cycle.more_body:
            # The requests before are whole: they are answered, then the connection ends.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif self.pipeline or self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(400, f"We could not parse the body of your request: {msg}")
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    # --- large bodies ------------------------------------------------------------------------------------

    def _announced_bytes(self) -> int:
        """How long the body is that now begins, if it is a large one. The parser has refused whatever would
        make its length doubtful."""
        if self.pipeline or self.parser.should_upgrade():
            return 0
        named = dict(self.headers)
        if b"transfer-encoding" in named:
            return 0
        size_bytes = int(named.get(b"content-length", b"0"))
        return size_bytes if size_bytes >= _LARGE_BYTES else 0

    def _take_body(self, data: bytes) -> bytes:
        """Takes what belongs to the body, without the three copies that the parser and uvicorn's buffer would
        make; what is left over belongs to the next request."""
        self._loose_bytes = 0
        body = data if len(data) <= self._left_bytes else data[: self._left_bytes]
        self._left_bytes -= len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            # uvicorn asks this for its length and its bytes, and puts an empty buffer in its place.
            cycle.body = cast("bytearray", bytes(cycle.body) + body if cycle.body else body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()
        if not self._left_bytes:
            self._begin_parsing_anew()
            self.on_message_complete()
        return data[len(body) :]

    def _begin_parsing_anew(self) -> None:
        """The parser still waits for a body that went past it."""
        self.parser = type(self.parser)(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    # --- how it ends -------------------------------------------------------------------------------------

    @property
    def _is_at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - uvicorn starts with None whatever the type says

    def _make_room(self) -> bool:
        """Closes the connection that has been without a request for longest; says whether there was one."""
        everyone = cast("set[object]", self.connections)
        oldest, longest = self.loop.time(), None
        for other in everyone:
            if not isinstance(other, Connection) or other.transport.is_closing():
                continue
            if other.idle_since is not None and other.idle_since < oldest:
                oldest, longest = other.idle_since, other
        if longest is None:
            return False
        longest.transport.close()
        return True

    def _refuse(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Answers past the app and ends the connection, gently: closing it with bytes of the client under way
        would destroy the answer in its hands."""
        self._is_deaf = True
        self._unset_keepalive_if_required()
        body = encode(error_body(message, error_type="invalid_request_error", param=None, code=None))
        named = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": f"req_{secrets.token_hex(16)}",
            "openai-version": OPENAI_VERSION.decode(),
            "x-content-type-options": "nosniff",
            **(headers or {}),
        }
        head = [b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in named.items()]
        self.transport.write(b"".join([STATUS_LINE[status], *head, b"\r\n", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.header_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_deaf or self.transport.is_closing():
            return
        if self._is_at_work:
            self._start_head_timer()  # a pipelined request may wait for the one before
        elif self._loose_bytes:
            waited = f"{self.limits.header_s:g} seconds"
            self._refuse(408, f"The request's headers did not arrive within {waited}. Please send it again.")
        else:
            self.transport.close()

    def _start_write_timer(self) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(
            self.limits.download_idle_s, self._write_is_late, waiting_bytes
        )

    def _write_is_late(self, waited_bytes: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < waited_bytes:
            self._start_write_timer()
        else:
            self.transport.abort()
