"""The lean transport: HTTP/1.1 connections to one host, reused.

Finds or opens a connection for each attempt, enforces the deadlines of all attempts, and closes connections
that are idle or late. Guarantees: no task and no timer per request. A request whose reused connection was
closed before a byte of the answer arrived is sent once more, at once, on a new connection, and an outcome
that is no answer counts accordingly (`sent_again`). A redirect is an answer and is not followed. A cancelled
attempt closes its connection. Proxies belong to `over_aiohttp`; HTTP/2 and cookies are not supported.

One timer checks all connections ten times a second while there are any, so an attempt may end up to a tenth
of a second after its deadline.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable

from nightmill.core.outcome import Outcome, Unreachable, sent_again
from nightmill.upstream.answer import GONE, body_of_ok
from nightmill.upstream.connection import RECEIVE_BYTES, Attempt, Connection
from nightmill.upstream.port import Tag
from nightmill.upstream.target import Target

IDLE_S = 4.0
"""Less than uvicorn's 5 s, so that the client closes first."""
OPENING_AT_ONCE = 64
"""More simultaneous connection attempts could overflow a small listen backlog, which costs a second."""
MODELS_TIMEOUT_S = 10.0
_SWEEP_S = 0.1
_CLOSING_S = 1.0
_ONE_PIECE_BYTES = 16 << 10
"""Below this size one copied buffer is cheaper than two buffers."""
_LENGTH = b"content-length: "
_TIMED_EVERY_S = 0.01
"""At most a hundred attempts a second are timed to their first byte, because each costs a call."""
_CLOSED = "the upstream was closed by nightmill"

# Words with which `reason_of` begins; `diagnosis` recognizes them.
REFUSED = "connection refused"
UNKNOWN_HOST = "its host name can't be looked up"
NOT_TRUSTED = "its TLS certificate is not trusted"


class LeanUpstream:
    """An upstream over nightmill's own HTTP/1.1 client. Bound to the event loop of its first request.

    Args:
        target: where requests go.
        tls: how the server's certificate is checked; None for plain http.
        connect_timeout_s: for name lookup, TCP and TLS together.
        max_answer_bytes: the longest body; an answer with a longer body ends as too long.
        idle_s: seconds after which an idle connection is closed.
        wall_clock: Unix seconds, for a header that names a date.
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
        self._openers: dict[asyncio.Task[None], Attempt] = {}
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._opening = asyncio.Semaphore(OPENING_AT_ONCE)
        self._failed: Unreachable | None = None
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()
        self._closed = False
        self._note_first_byte: Callable[[float], None] = _ignore
        self._timed_next_at = 0.0

    def time_first_bytes(self, note: Callable[[float], None]) -> None:
        """See `TimesFirstBytes`."""
        self._note_first_byte = note

    def start(
        self,
        tag: Tag,
        endpoint: str,
        body: bytes,
        *,
        timeout_s: float,
        on_outcome: Callable[[Tag, Outcome], None],
        head_lines: bytes = b"",
    ) -> None:
        """See `Attempts`.

        Args:
            head_lines: further headers of this attempt, each with its line break.
        """
        head = self._heads.get(endpoint)
        if head is None:
            path = self._target.path_of(endpoint)
            head = self._heads[endpoint] = self._head("POST", path) + (
                b"content-type: application/json\r\n" + _LENGTH
            )
        if head_lines:
            head = head.removesuffix(_LENGTH) + head_lines + _LENGTH
        if len(body) < _ONE_PIECE_BYTES:
            head, body = b"%b%d\r\n\r\n%b" % (head, len(body), body), b""
        else:
            head = b"%b%d\r\n\r\n" % (head, len(body))
        now = self._now()
        timed_from = None
        if now >= self._timed_next_at:
            timed_from, self._timed_next_at = now, now + _TIMED_EVERY_S
        attempt = Attempt(tag, on_outcome, head, body, now + timeout_s, timeout_s, None, timed_from)
        self._begin(attempt, now)

    def give_up(self, tag: object) -> None:
        for connection in self._connections:
            if connection.attempt is not None and connection.attempt.tag is tag:
                connection.forget()
                return
        for task, attempt in self._openers.items():
            if attempt.tag is tag:
                del self._openers[task]
                task.cancel()
                return

    async def send(self, endpoint: str, body: bytes, *, timeout_s: float) -> Outcome:
        reply: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.start(reply, endpoint, body, timeout_s=timeout_s, on_outcome=_answer)
        return await self._awaited(reply)

    async def models(self) -> bytes | None:
        path = self._target.path_of("/v1/models")
        outcome = await self.get(path, timeout_s=MODELS_TIMEOUT_S, max_answer_bytes=self._max_answer_bytes)
        return body_of_ok(outcome)

    async def get(self, path: str, *, timeout_s: float, max_answer_bytes: int) -> Outcome:
        head = self._head("GET", path) + b"\r\n"
        reply: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now = self._now()
        self._begin(Attempt(reply, _answer, head, b"", now + timeout_s, timeout_s, max_answer_bytes), now)
        return await self._awaited(reply)

    async def close(self) -> None:
        self._closed = True
        for connection in tuple(self._connections):
            if connection.attempt is not None:
                connection.abort()
            else:
                connection.close()
        for task in tuple(self._openers):
            self._opened(task, Unreachable(_CLOSED))
            task.cancel()
        if self._connections:
            try:
                async with asyncio.timeout(_CLOSING_S):
                    await self._all_gone.wait()
            except TimeoutError:  # a TLS peer that does not answer the close_notify
                for connection in tuple(self._connections):
                    connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _head(self, method: str, path: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._target.authority}"]
        lines += [f"{name}: {value}" for name, value in self._target.headers]
        return "".join(f"{line}\r\n" for line in lines).encode("ascii")

    def _now(self) -> float:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.time()

    def _begin(self, attempt: Attempt, now: float) -> None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.is_open:
                continue
            if now - connection.idle_since > self._idle_s:
                connection.close()
                continue
            connection.ask(attempt)
            return
        self._begin_on_new_connection(attempt)

    def _begin_on_new_connection(self, attempt: Attempt) -> None:
        """Sends on a new connection."""
        assert self._loop is not None
        task = self._loop.create_task(self._open_for(attempt), name="open a connection")
        self._openers[task] = attempt

    def _send_again(self, attempt: Attempt) -> None:
        """Sends once more after the reused connection was closed; the upstream may have read the line."""
        on_outcome = attempt.on_outcome

        def on_outcome_of_both(tag: object, outcome: Outcome) -> None:
            on_outcome(tag, sent_again(outcome, first=GONE))

        attempt.on_outcome = on_outcome_of_both
        self._begin_on_new_connection(attempt)

    async def _open_for(self, attempt: Attempt) -> None:
        assert self._loop is not None
        task = asyncio.current_task()
        assert task is not None
        try:
            opened = await self._open(self._loop, deadline=attempt.deadline)
        except Exception as error:  # noqa: BLE001 - any error of connecting is an outcome
            opened = Unreachable(f"no connection: {type(error).__name__}")
        self._opened(task, opened)

    def _opened(self, task: asyncio.Task[None], opened: Connection | Unreachable) -> None:
        attempt = self._openers.pop(task, None)
        if isinstance(opened, Unreachable):
            if attempt is not None:
                attempt.on_outcome(attempt.tag, opened)
        elif attempt is None:
            opened.close()
        else:
            opened.ask(attempt)

    async def _awaited(self, reply: asyncio.Future[Outcome]) -> Outcome:
        try:
            return await reply
        except asyncio.CancelledError:
            self.give_up(reply)
            raise

    async def _open(self, loop: asyncio.AbstractEventLoop, *, deadline: float) -> Connection | Unreachable:
        failures = self._failures
        try:
            async with asyncio.timeout_at(deadline), self._opening:
                if self._closed:
                    return Unreachable(_CLOSED)
                if self._failed is not None and self._failures != failures:
                    return self._failed  # attempts that waited need not repeat a connect that has just failed
                outcome = await self._connect(loop)
        except TimeoutError:
            return Unreachable("no connection within the attempt's time")
        if isinstance(outcome, Unreachable):
            self._failed = outcome
            self._failures += 1
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
            unsent=self._send_again,
            lost=self._lost,
            answering=self._answering,
        )

    def _answering(self, timed_from: float) -> None:
        self._note_first_byte(self._now() - timed_from)

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self._connections):
            if connection.attempt is not None:
                if now >= connection.attempt.deadline:
                    connection.expire()
            elif connection.is_open and now - connection.idle_since > self._idle_s:
                connection.close()
        self._idle[:] = [connection for connection in self._idle if connection.is_open]
        more = bool(self._connections)
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep, loop) if more else None


def _ignore(_: float) -> None:
    """Without a listener, first bytes are not timed."""


def _answer(reply: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not reply.done():  # the future may be cancelled before its task has run
        reply.set_result(outcome)


def reason_of(error: OSError) -> str:
    """Why a connection failed, in words of nightmill and the system; never text that the server sent."""
    match error:
        case ConnectionRefusedError():
            return REFUSED
        case socket.gaierror():
            return UNKNOWN_HOST
        case ssl.SSLCertVerificationError():
            return f"{NOT_TRUSTED}: {error.verify_message}"
        case ssl.SSLError():
            # Not every TLS error has a reason, whatever its type says.
            return f"no TLS connection: {getattr(error, 'reason', None) or 'handshake failed'}"
        case _:
            return f"no connection: {error.strerror or type(error).__name__}"
