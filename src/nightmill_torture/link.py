"""A TCP link from a process to a service, which can be cut, held back and slowed down.

It listens on a loopback port and carries bytes both ways. An open link changes no byte, and TLS goes through
untouched.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from nightmill_torture.plan import Manner

Ends: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK_BYTES = 64 << 10
_HEAD_BYTES = 8 << 10


class Link:
    """Listens on `port` while it is entered.

    Args:
        connect: opens a connection to the service.
        is_tunnel: each connection names the service with CONNECT, as with a proxy for HTTPS; `connect` is
            called with that name.
        host: the address to listen on.
    """

    def __init__(
        self, connect: Callable[[str], Awaitable[Ends]], *, is_tunnel: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self._connect = connect
        self._is_tunnel = is_tunnel
        self._host = host
        self._cut: Manner | None = None
        self._healed = asyncio.Event()
        self._healed.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.delay_s = 0.0
        """Delay of every piece of every request and answer."""

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
            return  # asyncio logs a cancelled task of a listener as an error
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._carrying.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut is Manner.REFUSED:
            return
        name = await _requested_name(reader) if self._is_tunnel else ""
        await self._healed.wait()
        there, back = await self._connect(name)
        self._writers.add(back)
        try:
            if self._is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, is_answer=False))
                group.create_task(self._pump(there, writer, is_answer=True))
        except* OSError:
            pass  # one side has closed, so the other is closed too
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


async def _requested_name(reader: asyncio.StreamReader) -> str:
    """The host and port of a CONNECT request, whose head it reads."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, name, _ = head[:_HEAD_BYTES].decode("ascii", "replace").split(" ", 2)
    if method != "CONNECT":
        raise ConnectionError("the tunnel carries CONNECT only")
    return name
