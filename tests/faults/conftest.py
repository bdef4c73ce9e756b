"""A model server that misbehaves line by line, and the real roles that send to it over real sockets."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nightmill.blobs import FolderBlobs
from nightmill.core.batch import Batch
from nightmill.core.clocks import Clocks
from nightmill.roles.worker import Worker
from nightmill.settings import UpstreamSettings, load
from nightmill.store import open_store
from nightmill.store.migrate import migrate
from nightmill.upstream import open_upstream
from tests.roles.conftest import Mill, request_line
from tests.slow import IS_SLOW


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


class Step:
    """Steps of a script that are not bytes to write; a number is seconds to wait."""

    CLOSE = object()
    RESET = object()
    HANG = object()


def answer(body: bytes, *, status: str = "200 OK", headers: Iterable[str] = ()) -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def said(custom_id: str) -> bytes:
    """The right body for a line: it repeats what was asked, so that a mix-up shows."""
    return json.dumps({"choices": [{"message": {"content": custom_id}}]}).encode()


Script = tuple[Any, ...]
Plan = Callable[[str], Script]
"""From the custom_id of a line to what the server does with it."""


def well(custom_id: str) -> Script:
    return (answer(said(custom_id)),)


@dataclass
class Rogue:
    """Plays, for each request, the next script of its line, else of its model; without one it answers well.

    Attributes:
        calls: the custom_ids in the order of their requests; "Hi" for each cheap request.
        one_at_a_time: with it, requests wait in a queue, also those that the client has given up.
    """

    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    asked_at: dict[str, list[float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    always: Plan = well
    one_at_a_time: asyncio.Lock | None = None
    _plans: dict[str, deque[Plan]] = field(default_factory=dict)
    _lasting: dict[str, Plan] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def plays(self, name: str, plan: Plan, *, times: int | None = None) -> None:
        """`name` is a custom_id or a model."""
        if times is None:
            self._lasting[name] = plan
        else:
            self._plans.setdefault(name, deque()).extend([plan] * times)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1_024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def until_asked(self, times: int) -> None:
        """Returns once so many requests have come in all."""
        while self.asked.total() < times:
            self._news.clear()
            await self._news.wait()

    async def stop(self) -> None:
        """As a process that dies: the port is closed, every connection is reset."""
        assert self._server is not None
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """The server process is dead meanwhile. For tests in another thread than the server's."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(10)
        yield
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if head.startswith("get "):  # a server without gauges
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
        body = json.loads(await reader.readexactly(length))
        custom_id = body["messages"][0]["content"]
        self.asked[custom_id] += 1
        self.calls.append(custom_id)
        self._news.set()
        self.asked_at.setdefault(custom_id, []).append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with self.one_at_a_time or contextlib.nullcontext():
                return await self._play(self._plan(custom_id, body["model"])(custom_id), reader, writer)
        finally:
            self.in_flight -= 1

    def _plan(self, custom_id: str, model: str) -> Plan:
        for name in (custom_id, model):
            if plans := self._plans.get(name):
                return plans.popleft()
            if name in self._lasting:
                return self._lasting[name]
        return self.always

    async def _play(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for step in script:
            if step is Step.CLOSE:
                return False
            if step is Step.RESET:
                await asyncio.sleep(0.01)  # a reset overtakes what the peer has not read yet
                _reset(writer)
                return False
            if step is Step.HANG:
                await reader.read()  # until the client leaves
                return False
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            else:
                await asyncio.sleep(step)
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def rogue_in_a_thread() -> Iterator[Rogue]:
    """For tests of a server in processes of its own. Plans may be changed from the test's thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> Rogue:
        rogue = Rogue()
        await rogue.start()
        return rogue

    rogue = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    try:
        yield rogue
    finally:
        asyncio.run_coroutine_threadsafe(rogue.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@dataclass
class FaultyMill(Mill):
    """The roles of a server, their worker sending over a real transport."""

    transport: str = "lean"
    upstreams: list[Any] = field(default_factory=list)

    def sender(
        self, rogue: Rogue, *, slots: int = 8, random: float | Callable[[], float] = 0.01, **settings: Any
    ) -> Worker:
        """A worker that sends to the rogue; `settings` are the upstream's."""
        wanted = UpstreamSettings(transport=self.transport, **settings)  # type: ignore[arg-type]
        self.settings = self.settings.model_copy(update={"upstream": wanted})
        upstream = open_upstream(wanted, url=rogue.url)
        self.upstreams.append(upstream)
        return self.sending(
            upstream,
            slots=slots,
            name=f"worker_{len(self.upstreams)}",
            clocks=Clocks(
                wall=self.clock,
                monotonic=time.monotonic,
                random=random if callable(random) else lambda: random,
            ),
        )

    async def batch_of_lines(self, *custom_ids: str) -> Batch:
        return await self.accepted(b"".join(request_line(custom_id) for custom_id in custom_ids))

    async def results(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Each line's one row, by custom_id; those of the output file say what they were asked."""
        output, error = await self.rows(batch.output_file_id), await self.rows(batch.error_file_id)
        rows = {row["custom_id"]: row for row in (*output, *error)}
        assert len(rows) == len(output) + len(error) == batch.total
        for row in output:
            assert row["error"] is None
            assert row["response"]["body"]["choices"][0]["message"]["content"] == row["custom_id"]
        return rows


@pytest.fixture
async def rogue() -> AsyncIterator[Rogue]:
    server = Rogue()
    await server.start()
    yield server
    await server.stop()


TRANSPORTS = ("lean", "aiohttp")


def over(transport: str) -> pytest.MarkDecorator:
    """For a test that takes long: `make test` runs it over one transport, `make test-slow` over both."""
    chosen = TRANSPORTS if IS_SLOW else (transport,)
    return pytest.mark.parametrize("transport", chosen, indirect=True)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return request.param


@pytest.fixture
async def mill(tmp_path: Path) -> AsyncIterator[FaultyMill]:
    flags = {
        "folder": tmp_path,
        "worker": {"lines_per_segment": 8, "beat_s": 0.05, "lease_ttl_s": 5.0, "cancel_grace_s": 0.2},
        "retention": {"sweep_s": 0.05, "free_bytes": 0},
    }
    settings = load(flags=flags, environment={})
    await migrate(settings.store_url)
    store = open_store(settings.store_url)
    mill = FaultyMill(tmp_path, store, FolderBlobs(tmp_path, watermark_bytes=0), settings)
    yield mill
    for room in (*mill.upstreams, *mill.opened, store):
        await room.close()
