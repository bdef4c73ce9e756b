"""A TCP link of a process to a place, that can be cut, kept waiting and slowed down.

Duty: listen on a loopback port, and carry bytes both ways. Promise: an open link changes nothing of what it
carries. Not its duty: what the bytes mean; TLS goes through it untouched.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from nightmill.torture.fleet.plan import Manner

Ends: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK_BYTES = 64 << 10
_HEAD_BYTES = 8 << 10


class Link:
    """To be entered: from then on it listens on `port`.

    Args:
        reach: opens a connection to the place.
        is_tunnel: the place is named by each connection's CONNECT, as with a proxy for HTTPS; then `reach` is
            given that name.
        host: the address to listen on.
    """

    def __init__(
        self, reach: Callable[[str], Awaitable[Ends]], *, is_tunnel: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self._reach = reach
        self._is_tunnel = is_tunnel
        self._host = host
        self._cut: Manner | None = None
        self._healed = asyncio.Event()
        self._healed.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.delay_s = 0.0
        """Every piece of every answer and request waits so long."""

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._accept, self._host, 0, backlog=1_024)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._break_all()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self, manner: Manner) -> None:
        self._cut = manner
        if manner is Manner.REFUSED:
            self._break_all()
        if manner is Manner.SILENT:
            self._healed.clear()

    def heal(self) -> None:
        if self._cut is Manner.DEAF:
            self._break_all()
        self._cut = None
        self._healed.set()

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._carry(reader, writer)
        except asyncio.CancelledError:
            return  # a task of the listener's own: it would be told as an error of it
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._carrying.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut is Manner.REFUSED:
            return
        name = await _name_asked_for(reader) if self._is_tunnel else ""
        await self._healed.wait()
        there, back = await self._reach(name)
        self._writers.add(back)
        try:
            if self._is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, is_answer=False))
                group.create_task(self._pump(there, writer, is_answer=True))
        except* OSError:
            pass  # one side has gone: so does the other
        finally:
            back.transport.abort()
            self._writers.discard(back)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while piece := await source.read(_CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._healed.wait()
            if is_answer and self._cut is Manner.DEAF:
                continue
            if sink.transport.is_closing():
                return
            sink.write(piece)
            await sink.drain()
        await self._healed.wait()
        if sink.can_write_eof() and not sink.transport.is_closing():
            sink.write_eof()


async def _name_asked_for(reader: asyncio.StreamReader) -> str:
    """The host and port of a CONNECT request, whose head it reads."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, name, _ = head[:_HEAD_BYTES].decode("ascii", "replace").split(" ", 2)
    if method != "CONNECT":
        raise ConnectionError("the tunnel carries CONNECT only")
    return name
