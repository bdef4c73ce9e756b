"""The lean transport: a pool of HTTP/1.1 connections to one host.

Duty: find or open a connection for each attempt, keep time for all of them, close what is idle or late.
Promise: no task and no timer per request; a request whose reused connection was closed under it before a
byte came back is sent once more, at once, on a new connection, and an outcome that is no answer says so; a
redirect is an answer and is not followed; a cancelled attempt closes its connection. Not its duty: proxies,
HTTP/2, cookies (`over_aiohttp`).

One timer sweeps all connections ten times a second while there are any, so an attempt may end up to a tenth
of a second after its time.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any

from nightmill.pacing import Answered, Outcome, Unreachable, sent_twice
from nightmill.upstream.answer import GONE
from nightmill.upstream.connection import RECEIVE_BYTES, Connection
from nightmill.upstream.target import Target

IDLE_S = 4.0
"""Less than uvicorn's 5 s, so that it is we who close."""
OPENING_AT_ONCE = 64
"""More connection attempts in one instant could overflow a small listen backlog: a stall of a second."""
MODELS_TIMEOUT_S = 10.0
_SWEEP_S = 0.1
_CLOSING_S = 1.0
_OK = 200


class LeanUpstream:
    """An upstream over our own HTTP/1.1 client. Bound to the event loop of its first request.

    Args:
        target: where to.
        tls: how to check the server; None for plain http.
        connect_timeout_s: for name, TCP and TLS together.
        max_answer_bytes: a longer body is broken off.
        idle_s: an idle connection is closed after so long.
        wall_clock: for a Retry-After that is a date.
    """

    def __init__(
        self,
        target: Target,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout_s: float,
        max_answer_bytes: int,
        idle_s: float = IDLE_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._target = target
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._idle_s = idle_s
        self._wall_clock = wall_clock
        self._heads: dict[str, bytes] = {}
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._opening = asyncio.Semaphore(OPENING_AT_ONCE)
        self._failed: tuple[float, Unreachable] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()
        self._closed = False

    def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Coroutine[Any, Any, Outcome]:
        head = self._heads.get(endpoint)
        if head is None:
            path = self._target.path_of(endpoint)
            head = self._heads[endpoint] = self._head("POST", path) + (
                b"content-type: application/json\r\ncontent-length: "
            )
        return self._exchange(b"%b%d\r\n\r\n" % (head, len(body)), body, timeout_s)

    async def models(self) -> bytes | None:
        return await self.get(self._target.path_of("/v1/models"))

    async def get(self, path: str) -> bytes | None:
        """What stands at a path of the host's, or None when it gave no 200."""
        head = self._head("GET", path) + b"\r\n"
        outcome = await self._exchange(head, b"", MODELS_TIMEOUT_S)
        return outcome.body if isinstance(outcome, Answered) and outcome.status == _OK else None

    async def close(self) -> None:
        self._closed = True
        for connection in tuple(self._connections):
            if connection.is_busy:
                connection.abort()
            else:
                connection.close()
        if self._connections:
            try:
                async with asyncio.timeout(_CLOSING_S):
                    await self._all_gone.wait()
            except TimeoutError:  # a TLS peer that does not answer our goodbye
                for connection in tuple(self._connections):
                    connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _head(self, method: str, path: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._target.authority}"]
        lines += [f"{name}: {value}" for name, value in self._target.headers]
        return "".join(f"{line}\r\n" for line in lines).encode("ascii")

    async def _exchange(self, head: bytes, body: bytes, timeout_s: float) -> Outcome:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = now + timeout_s
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.is_open:
                continue
            if now - connection.idle_since > self._idle_s:
                connection.close()
                continue
            reply = connection.ask(head, body, deadline=deadline, timeout_s=timeout_s)
            try:
                outcome = await reply
            except asyncio.CancelledError:
                connection.forget(reply)
                raise
            if outcome is not None:
                return outcome
            break
        else:
            return await self._exchange_anew(loop, head, body, deadline=deadline, timeout_s=timeout_s)
        outcome = await self._exchange_anew(loop, head, body, deadline=deadline, timeout_s=timeout_s)
        return GONE if isinstance(outcome, Unreachable) else sent_twice(outcome)

    async def _exchange_anew(
        self,
        loop: asyncio.AbstractEventLoop,
        head: bytes,
        body: bytes,
        *,
        deadline: float,
        timeout_s: float,
    ) -> Outcome:
        """Over a connection of its own."""
        opened = await self._open(loop, deadline=deadline)
        if isinstance(opened, Unreachable):
            return opened
        reply = opened.ask(head, body, deadline=deadline, timeout_s=timeout_s)
        try:
            outcome = await reply
        except asyncio.CancelledError:
            opened.forget(reply)
            raise
        return outcome if outcome is not None else GONE

    async def _open(self, loop: asyncio.AbstractEventLoop, *, deadline: float) -> Connection | Unreachable:
        began = loop.time()
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                if self._closed:
                    return Unreachable("the upstream was closed by us")
                if self._failed is not None and self._failed[0] > began:
                    return self._failed[1]  # those who waited for their turn need not try the same again
                outcome = await self._connect(loop)
        except TimeoutError:
            return Unreachable("no connection within the attempt's time")
        if isinstance(outcome, Unreachable):
            self._failed = (loop.time(), outcome)
        return outcome

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection | Unreachable:
        target = self._target
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    self._new_connection,
                    target.host,
                    target.port,
                    ssl=self._tls,
                    server_hostname=target.host if self._tls is not None else None,
                )
        except TimeoutError:
            return Unreachable(f"no connection within {self._connect_timeout_s:g} s")
        except OSError as error:
            return Unreachable(reason_of(error))
        self._connections.add(connection)
        self._all_gone.clear()
        if self._sweeping is None:
            self._sweeping = loop.call_later(_SWEEP_S, self._sweep, loop)
        return connection

    def _new_connection(self) -> Connection:
        return Connection(
            loop=asyncio.get_running_loop(),
            buffer=self._buffer,
            max_answer_bytes=self._max_answer_bytes,
            wall_clock=self._wall_clock,
            freed=self._idle.append,
            lost=self._lost,
        )

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self._connections):
            if connection.is_busy:
                if now >= connection.deadline:
                    connection.expire()
            elif connection.is_open and now - connection.idle_since > self._idle_s:
                connection.close()
        self._idle[:] = [connection for connection in self._idle if connection.is_open]
        more = bool(self._connections)
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep, loop) if more else None


def reason_of(error: OSError) -> str:
    """Why no connection came about, in our own words and the system's, never the server's."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return "its host name can't be looked up"
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            # Not every TLS error has a reason, whatever its type says.
            return f"no TLS connection: {getattr(error, 'reason', None) or 'handshake failed'}"
        case _:
            return f"no connection: {error.strerror or type(error).__name__}"
