"""One HTTP/1.1 connection of the lean transport, for one request at a time.

Writes a request in one call, reads the answer, and detects everything that is not an answer. Guarantees:
bytes of one answer never reach another request; a connection whose state is in doubt is closed. The set of
connections and the deadlines of attempts belong to `http1`.

There is no task, future, timer or queue: the event loop calls in, and callbacks call out. All connections of
a transport receive into one buffer, since the event loop fills and hands over the buffer in one step.
"""

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong
from nightmill.upstream.answer import GONE, KEPT_HEADERS, outcome_of

RECEIVE_BYTES = 64 << 10
MAX_OVERHEAD_BYTES = 64 << 10
"""The most bytes that may arrive without body bytes: headers, 1xx answers, chunk extensions, trailers."""

_FIRST_FINAL_STATUS = 200
_CONTENT_LENGTH_BYTES = len(b"content-length")
_TRANSFER_ENCODING = b"transfer-encoding"
_LENGTHS = frozenset(len(name) for name in (*KEPT_HEADERS, _TRANSFER_ENCODING))


class Attempt(msgspec.Struct, eq=False, gc=False):
    """A request in flight.

    Args:
        head: the whole of a short request, or all that precedes `body`.
        deadline: in seconds of the event loop's clock.
        max_answer_bytes: the longest body, if other than the connection's.
        timed_from: the start of an attempt whose first byte is timed, by the event loop's clock.
    """

    tag: Any
    on_outcome: Callable[[Any, Outcome], None]
    head: bytes
    body: bytes
    deadline: float
    timeout_s: float
    max_answer_bytes: int | None = None
    timed_from: float | None = None


class Connection(asyncio.BufferedProtocol):
    """Made by `loop.create_connection`.

    Args:
        loop: the running one.
        buffer: receives the bytes of all connections.
        max_answer_bytes: the longest body; a longer one ends as `TooLong`, and one that is announced at once.
        wall_clock: Unix seconds, for a header that names a date.
        freed: called when the connection can take the next request.
        unsent: called when a reused connection was closed before a byte of the attempt's answer arrived.
        lost: called when the connection is closed.
        answering: called when the first byte of the answer to a timed attempt has arrived, with its start.
    """

    __slots__ = (
        "_answering",
        "_body",
        "_buffer",
        "_complete",
        "_framed",
        "_freed",
        "_headers",
        "_in_body",
        "_is_too_long",
        "_keeps",
        "_limit_bytes",
        "_longer_body",
        "_longest_digits",
        "_loop",
        "_lost",
        "_max_answer_bytes",
        "_overhead_bytes",
        "_parser",
        "_reused",
        "_silent",
        "_size_bytes",
        "_status",
        "_transport",
        "_unsent",
        "_wall_clock",
        "attempt",
        "idle_since",
        "is_open",
    )

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        buffer: memoryview,
        max_answer_bytes: int,
        wall_clock: Callable[[], float],
        freed: "Callable[[Connection], None]",
        unsent: Callable[[Attempt], None],
        lost: "Callable[[Connection], None]",
        answering: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._buffer = buffer
        self._max_answer_bytes = max_answer_bytes
        self._limit_bytes = max_answer_bytes  # of the attempt in flight
        self._longest_digits = len(str(max_answer_bytes))
        self._wall_clock = wall_clock
        self._freed = freed
        self._unsent = unsent
        self._lost = lost
        self._answering = answering
        self._transport: asyncio.Transport  # from connection_made on
        self._parser = HttpResponseParser(self)
        self.attempt: Attempt | None = None
        """The request in flight, if there is any."""
        self.idle_since = 0.0
        self.is_open = False
        self._reused = False
        # State of the answer being read. `_status` is valid only while `_in_body`, `_keeps` only when
        # `_complete`.
        self._silent = True
        self._headers: dict[bytes, bytes] = {}
        self._framed = False
        self._is_too_long = False
        self._in_body = False
        self._status = 0
        self._complete = False
        self._keeps = False
        self._overhead_bytes = 0
        self._size_bytes = 0
        self._body = b""
        self._longer_body: BytesIO | None = None

    def _expect_answer(self) -> None:
        self._silent = True
        self._framed = False
        self._in_body = False
        self._complete = False
        self._overhead_bytes = 0
        self._size_bytes = 0
        self._body = b""
        self._longer_body = None

    def ask(self, attempt: Attempt) -> None:
        """Sends a request. The connection must be open and idle."""
        self.attempt = attempt
        limit_bytes = attempt.max_answer_bytes
        self._limit_bytes = self._max_answer_bytes if limit_bytes is None else limit_bytes
        try:
            if attempt.body:
                self._transport.writelines((attempt.head, attempt.body))
            else:
                self._transport.write(attempt.head)
        except RuntimeError:  # uvloop: the socket failed and `connection_lost` was not called yet
            self._end(self._cut_short())

    def expire(self) -> None:
        """Ends the attempt as timed out."""
        if self.attempt is not None:
            self._end(TimedOut(self.attempt.timeout_s))

    def forget(self) -> None:
        """Ends the attempt without a call of `on_outcome`, and closes the connection."""
        self.attempt = None
        self.abort()

    def abort(self) -> None:
        """Closes at once; a request in flight ends as broken."""
        self._end(Broken("the connection was closed by nightmill"))

    def close(self) -> None:
        """Closes an idle connection after pending bytes are written."""
        self.is_open = False
        self._transport.close()

    def _settle(self) -> None:
        status = self._status
        body = self._body if self._longer_body is None else self._longer_body.getvalue()
        if self._headers:
            outcome = self._outcome(status, body)
            self._headers = {}
        else:
            outcome = Answered(status, body)
        attempt = self.attempt
        self.attempt = None
        if self._keeps and self.is_open:
            self._expect_answer()
            self._reused = True
            self.idle_since = self._loop.time()
            self._freed(self)
        else:
            self.close()
        if attempt is not None:
            attempt.on_outcome(attempt.tag, outcome)

    def _outcome(self, status: int, body: bytes) -> Outcome:
        if _TRANSFER_ENCODING in self._headers:
            self._keeps = False
            return Broken("the answer is in a transfer coding that can't be read")
        return outcome_of(
            status, body, headers=self._headers, max_bytes=self._limit_bytes, now=self._wall_clock()
        )

    def _end(self, outcome: Outcome | None) -> None:
        self.is_open = False
        attempt = self.attempt
        self.attempt = None
        self._transport.abort()
        if attempt is None:
            return
        if outcome is None:
            self._unsent(attempt)
        else:
            attempt.on_outcome(attempt.tag, outcome)

    def _cut_short(self) -> Broken | None:
        """The outcome of a lost connection; None if a new connection may succeed.

        None means that a reused connection was closed before a byte of the answer arrived.
        """
        if not self._silent:
            return Broken("the connection was closed in the middle of the answer")
        return None if self._reused else GONE

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the interface's
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.attempt is None:
            self.abort()  # unrequested bytes would be taken for the next answer
            return
        if self._silent:
            self._silent = False
            if self.attempt.timed_from is not None:
                self._answering(self.attempt.timed_from)
        size_before_bytes = self._size_bytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (HttpParserError, HttpParserUpgrade):
            if not self._complete:
                self._end(Broken("the answer is not HTTP/1.1"))
                return
            self._keeps = False  # there are bytes beyond the answer; the answer itself is complete
        if self._is_too_long or self._size_bytes > self._limit_bytes:
            self._end(TooLong(self._limit_bytes))
        elif self._complete:
            self._settle()
        elif self._size_bytes == size_before_bytes:
            self._overhead_bytes += nbytes
            if self._overhead_bytes > MAX_OVERHEAD_BYTES:
                self._end(Broken("the answer's headers are too long"))
        else:
            self._overhead_bytes = 0

    def eof_received(self) -> None:
        self.is_open = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.attempt is not None:
            if exc is None and self._in_body and not self._framed:
                self._keeps = False
                self._settle()
            else:
                self._end(self._cut_short())
        self._lost(self)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            raise HttpParserError  # stops the parser before it mixes two answers

    def on_header(self, name: bytes, value: bytes) -> None:
        length = len(name)
        if length == _CONTENT_LENGTH_BYTES:
            if name.lower() == b"content-length":
                self._framed = True
                if len(value) >= self._longest_digits and not self._in_body:
                    self._is_too_long = int(value) > self._limit_bytes
        elif length in _LENGTHS and not self._in_body:  # in the body they are trailers
            name = name.lower()
            if name in KEPT_HEADERS:
                self._headers[name] = value
            elif name == _TRANSFER_ENCODING:
                self._note_transfer_coding(value.strip().lower())

    def _note_transfer_coding(self, coding: bytes) -> None:
        if coding == b"chunked":
            self._framed = True
        elif coding != b"identity":
            self._headers[_TRANSFER_ENCODING] = coding

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._size_bytes == 0:
            self._body = body
        else:
            if self._longer_body is None:
                self._longer_body = BytesIO()
                self._longer_body.write(self._body)
            self._longer_body.write(body)
        self._size_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._status < _FIRST_FINAL_STATUS:  # 1xx, such as 100 Continue: the final answer follows
            self._in_body = False
            self._framed = False
            self._headers = {}
            return
        self._complete = True
        self._keeps = self._parser.should_keep_alive()
