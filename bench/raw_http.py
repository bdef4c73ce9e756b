"""What the stubs of model servers share: whole requests and responses over a raw protocol on uvloop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import uvloop

_HEAD_END = b"\r\n\r\n"


def response(status: int, text: bytes) -> bytes:
    """A whole response with a JSON body."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(text)) + text


class Connection(asyncio.Protocol):
    """Reads whole requests, one at a time.

    Args:
        handle: called with each request and the transport for its response.
    """

    def __init__(self, handle: Callable[[bytes, asyncio.Transport], None]) -> None:
        self._handle = handle
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        end = received.find(_HEAD_END)
        if end >= 0:
            at = received.lower().find(b"content-length:", 0, end)
            length = int(received[at + 15 : received.index(b"\r", at)]) if at >= 0 else 0
            if len(received) >= end + len(_HEAD_END) + length:
                self._received = b""
                self._handle(received, self._transport)
                return
        self._received = received


async def serve(handle: Callable[[bytes, asyncio.Transport], None], port: int) -> None:
    """Serves on loopback until it is cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(handle), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a stub on uvloop until Ctrl-C."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(main())  # type: ignore[arg-type]
