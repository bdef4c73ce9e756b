"""A server that misbehaves on order, and both transports on both event loops to send to it."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from nightmill.settings import UpstreamSettings
from nightmill.upstream import open_upstream

CERTIFICATES = Path(__file__).parent / "certificates"


def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@dataclass(frozen=True)
class Pause:
    seconds: float


class Step:
    """Steps of a script that are not bytes."""

    CLOSE = object()
    RESET = object()
    HANG = object()


def answer(body=b'{"ok":true}', *, status=b"200 OK", headers=()):
    lines = [
        b"HTTP/1.1 " + status,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class Seen:
    """One request as it arrived."""

    connection: int
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Rogue:
    """Plays one script per request, in the order given; without a script it answers well.

    A script is a sequence of bytes to write, `Pause`s and `Step`s.
    """

    port: int = 0
    host: str = "127.0.0.1"
    scheme: str = "http"
    requests: list[Seen] = field(default_factory=list)
    scripts: deque = field(default_factory=deque)
    connections: int = 0
    open_connections: int = 0
    always: tuple = (answer(),)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: asyncio.Server | None = None
    _tasks: set = field(default_factory=set)

    @property
    def url(self):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/v1"

    def plays(self, *steps):
        self.scripts.append(steps)

    async def start(self, *, tls=None, name=None):
        self._server = await asyncio.start_server(
            self._serve, self.host, self.port, ssl=tls, backlog=1_024, limit=1 << 20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.scheme = "http" if tls is None else "https"
        self.host = name or self.host

    async def stop(self):
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def until(self, holds):
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(holds)

    async def until_no_connection_is_left(self):
        await self.until(lambda: self.open_connections == 0)

    async def until_requests(self, count):
        await self.until(lambda: len(self.requests) >= count)

    async def _tell(self):
        async with self.changed:
            self.changed.notify_all()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        number = self.connections
        self.connections += 1
        self.open_connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    line, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
                    headers = {n.lower(): v.strip() for n, _, v in (row.partition(":") for row in rest)}
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    self.requests.append(Seen(number, line, headers, body))
                    await self._tell()
                    script = self.scripts.popleft() if self.scripts else self.always
                    if not await self._play(script, reader, writer):
                        return
        finally:
            writer.close()
            self._tasks.discard(asyncio.current_task())
            self.open_connections -= 1
            await self._tell()

    async def _play(self, script, reader, writer):
        for step in script:
            if step is Step.CLOSE:
                return False
            if step is Step.RESET:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return False
            if step is Step.HANG:
                await reader.read()  # until the client leaves
                return False
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                writer.write(step)
                await writer.drain()
        return True


@pytest.fixture
async def rogue():
    server = Rogue()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["lean", "aiohttp"])
def transport(request, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return request.param


@pytest.fixture
async def connect(transport):
    """Opens upstreams that are closed after the test."""
    opened = []

    def open_to(url, **settings):
        upstream = open_upstream(UpstreamSettings(transport=transport, **settings), url=url)
        opened.append(upstream)
        return upstream

    yield open_to
    for upstream in opened:
        await upstream.close()


@pytest.fixture
def ask():
    """One chat line, with a time of its own."""

    def send(upstream, body=b'{"model":"m"}', *, endpoint="/v1/chat/completions", timeout_s=60.0):
        return upstream.send(endpoint, body, timeout_s=timeout_s)

    return send


@pytest.fixture
def server_tls():
    def load(name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / f"{name}.pem")
        return context

    return load


@pytest.fixture
def trusted(monkeypatch):
    """Makes the tests' own authority one of the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))


@pytest.fixture
def words():
    """What tests say to the rogue server: `--import-mode=importlib` lets no test import this file."""

    class Words:
        answer = staticmethod(answer)
        Pause = Pause
        CLOSE = Step.CLOSE
        RESET = Step.RESET
        HANG = Step.HANG
        Rogue = Rogue

    return Words
