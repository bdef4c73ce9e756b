"""The app on a real port: uvicorn in a thread over SQLite and a folder, with official clients."""

import asyncio
import http.client
import itertools
import json
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import uvicorn
import uvloop

from nightmill.api.app import create_app
from nightmill.api.connection import http_config
from nightmill.api.context import ApiContext
from nightmill.blobs import FolderBlobs, PiecedBlobs
from nightmill.core.api_key import Scope, make_api_key
from nightmill.ids import ProjectId
from nightmill.parts import FolderParts
from nightmill.settings import Settings
from nightmill.store import open_store
from nightmill.store.migrate import migrate

T = TypeVar("T")
LINE = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n'
)
_project_numbers = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """What came back over a raw connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        document = self.json()
        assert set(document) <= {"error", "detail"}
        assert list(document["error"]) == ["message", "type", "param", "code"]
        assert document["error"]["message"]
        return document["error"]


@dataclass
class Server:
    """One running app. `notifications` has the time of each wake-up of the roles."""

    port: int
    folder: Path
    loop: asyncio.AbstractEventLoop
    context: ApiContext
    notifications: list[float]
    clients: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work`, most often a verb of the store, in the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def new_key(self, project: str, scope: Scope = Scope.PROJECT) -> str:
        secret, key = make_api_key(
            secrets.token_bytes,
            project_id=ProjectId(project),
            name="test",
            created_at=int(time.time()),
            scope=scope,
        )
        self.do(self.context.store.api_keys.add(key))
        return secret

    def client(self, key: str = "sk-none", **options: Any) -> openai.OpenAI:
        options = {"max_retries": 0, "timeout": 20} | options
        return self.clients.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options))

    def send(
        self,
        method: str,
        path: str,
        body: bytes | str | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        *,
        key: str | None = None,
        chunked: bool = False,
    ) -> Answer:
        """One request as it is written here, nothing evened out."""
        headers = dict(headers or {})
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers, encode_chunked=chunked)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    @contextmanager
    def connected(self) -> "Iterator[RawConnection]":
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection,
            connection.makefile("rb") as reader,
        ):
            yield RawConnection(connection, reader)

    def send_json(self, path: str, document: Any, *, key: str | None = None) -> Answer:
        return self.send("POST", path, json.dumps(document), {"Content-Type": "application/json"}, key=key)


@dataclass(frozen=True)
class RawConnection:
    """A connection on which every byte is given, and on which every response is read by its length."""

    socket: socket.socket
    reader: BufferedReader

    def send(self, sent: bytes) -> None:
        self.socket.sendall(sent)

    def end_of_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def read(self) -> Answer:
        """The next response, interim responses included. For HEAD use a new connection."""
        status = self.reader.readline().split()
        assert status, "the connection is closed"
        names: dict[str, str] = {}
        while line := self.reader.readline().strip():
            name, _, value = line.decode().partition(":")
            names[name.lower()] = value.strip()
        return Answer(int(status[1]), names, self.reader.read(int(names.get("content-length", "0"))))

    def is_closed(self) -> bool:
        return self.reader.read(1) == b""


async def no_models() -> bytes | None:
    return None


@contextmanager
def serving(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    upstream_models: Callable[[], Awaitable[bytes | None]] = no_models,
    clock: Callable[[], float] = time.time,
    change: Callable[[ApiContext], ApiContext] = lambda context: context,
) -> Iterator[Server]:
    """Starts the app and stops it again; `change` may put other parts into the context."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    started = threading.Event()
    box: list[Server | BaseException] = []
    stop: list[Callable[[], None]] = []

    async def run() -> None:
        url = f"sqlite:///{folder / 'nightmill.sqlite'}"
        await migrate(url)
        store = open_store(url, clock=clock)
        servers: list[uvicorn.Server] = []
        try:
            notifications: list[float] = []
            context = change(
                ApiContext(
                    store=store,
                    blobs=PiecedBlobs(FolderBlobs(folder / "blobs", watermark_bytes=0)),
                    parts=FolderParts(folder / "blobs/parts", commit_interval_s=0.002, buffer_bytes=1 << 20),
                    settings=Settings.model_validate(settings or {}),
                    notify=lambda: notifications.append(time.monotonic()),
                    upstream_models=upstream_models,
                    clock=clock,
                    random=secrets.token_bytes,
                    is_stopping=lambda: any(it.should_exit for it in servers),
                )
            )
            server = uvicorn.Server(http_config(create_app(context), context.settings.api))
            servers.append(server)
            stop.append(lambda: setattr(server, "should_exit", True))
            box.append(Server(port, folder, asyncio.get_running_loop(), context, notifications))
            started.set()
            await server.serve(sockets=[listener])
        finally:
            await store.close()

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            box.append(error)
            started.set()

    runner = threading.Thread(target=thread, name="server")
    runner.start()
    try:
        assert started.wait(20)
        if isinstance(box[0], BaseException):
            raise box[0]
        with box[0].clients:
            yield box[0]
    finally:
        for end in stop:
            end()
        runner.join(20)
        listener.close()
        assert not runner.is_alive()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that keep to a project of their own. It has a key, so it wants one."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        running.new_key("other")
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of one's own, with `serving`'s arguments."""
    with ExitStack() as stack:

        def start(**options: Any) -> Server:
            return stack.enter_context(serving(Path(tempfile.mkdtemp(dir=tmp_path)), **options))

        yield start


@pytest.fixture
def project() -> str:
    return f"project{next(_project_numbers)}"


@pytest.fixture
def key(server: Server, project: str) -> str:
    return server.new_key(project)


@pytest.fixture
def client(server: Server, key: str) -> openai.OpenAI:
    """The official client in a project of its own."""
    return server.client(key)


@pytest.fixture
def input_file_id(client: openai.OpenAI) -> str:
    return client.files.create(file=("in.jsonl", LINE.encode()), purpose="batch").id
