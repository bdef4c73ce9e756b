"""`nightmill serve` as a real process, used through the official client.

Every server that a test starts is stopped with SIGTERM, must exit with 0, and must leave no child process.
"""

import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

TERMINAL = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)/v1")
_START_S = 60
_project_numbers = itertools.count(1)
_END_S = 60


@dataclass(frozen=True)
class Answer:
    """A response read from a raw connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; checks that the body has only the error envelope."""
        document = self.json()
        assert set(document) <= {"error", "detail"}
        assert list(document["error"]) == ["message", "type", "param", "code"]
        assert document["error"]["message"]
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        return document["error"]


@dataclass
class Server:
    """One `nightmill serve` and its children."""

    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    log: Path
    clients: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "sk-none", **options: Any) -> openai.OpenAI:
        options = {"max_retries": 0, "timeout": 60} | options
        return self.clients.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options))

    def send(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Answer:
        """Sends one request exactly as given."""
        headers = dict(headers or {})
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            return _answer(connection.getresponse())
        finally:
            connection.close()

    def send_bytes(self, *pieces: bytes, half_close: bool = False) -> Answer | None:
        """Sends bytes over a socket; None if the server closed the connection without an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may answer before it has received everything
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection)
            try:
                response.begin()
                return _answer(response)
            except (http.client.BadStatusLine, ConnectionResetError):
                return None

    def new_key(self, project: str) -> str:
        made = subprocess.run(
            [*_COMMAND, "keys", "create", "test", "--project", project, "--folder", str(self.folder)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return made.stdout.strip()

    def children(self, *words: str) -> list[int]:
        """Process ids below the server whose command line holds all of `words`."""
        below = [self.process.pid]
        for pid in below:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                below.extend(map(int, task.read_text().split()))
        return [pid for pid in below[1:] if all(word in _command_of(pid) for word in words)]

    def blobs(self, under: str = "") -> set[str]:
        """Files on disk, unfinished writes included; parts with answers are not counted."""
        root = self.folder / "blobs"
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return {name for name in found if name.startswith(under) and not name.startswith("parts/")}

    def run(self, content: bytes, *, endpoint: str = CHAT, **more: Any) -> Batch:
        """Uploads a file, creates a batch, and polls until it has ended."""
        client = self.client()
        uploaded = client.files.create(file=content, purpose="batch")
        window = more.pop("completion_window", "24h")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint=endpoint, completion_window=window, **more
        )
        return ended(client, batch.id)

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        assert file_id is not None
        content = self.client().files.content(file_id).content
        assert content.isascii()
        assert content.endswith(b"\n")
        return [json.loads(line) for line in content.split(b"\n")[:-1]]


_COMMAND = (sys.executable, "-m", "nightmill")


def _answer(response: http.client.HTTPResponse) -> Answer:
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, response.read())


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(what: Callable[[], Any], *, timeout_s: float = 60, pause_s: float = 0.02) -> Any:
    """Calls `what` repeatedly until it returns a true value, and returns that value."""
    give_up_at = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < give_up_at, f"the condition did not become true in {timeout_s} s"
        time.sleep(pause_s)
    return answer


def ended(client: openai.OpenAI, batch_id: str, *, timeout_s: float = 60) -> Batch:
    def retrieved() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in TERMINAL else None

    return until(retrieved, timeout_s=timeout_s)


@contextmanager
def serving(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Starts a server, stops it with SIGTERM, and checks that nothing is left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    data = folder / "data"
    started_at = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*_COMMAND, "serve", "--port", "0", "--folder", str(data), *flags],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=os.environ | (environment or {}),
        )
    try:

        def port() -> int | None:
            printed = log.read_text(errors="replace")[started_at:]
            assert process.poll() is None, f"the server ended with {process.returncode}:\n{printed}"
            found = _LISTENS.search(printed)
            return int(found[1]) if found else None

        server = Server(process, until(port, timeout_s=_START_S), data, log)
        with server.clients:
            yield server
        children = server.children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=_END_S) == 0, log.read_text(errors="replace")
        assert [pid for pid in children if _command_of(pid)] == []
        assert "Traceback" not in log.read_text(errors="replace")[started_at:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An emulated server for all tests that use only their own files and batches."""
    often = {"NIGHTMILL_RETENTION__SWEEP_S": "0.5"}
    with serving(tmp_path_factory.mktemp("served"), "--emulate", environment=often) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An emulated server with keys, for tests that need separate projects."""
    folder = tmp_path_factory.mktemp("keyed")
    with serving(folder, "--emulate") as running:
        yield running


@pytest.fixture
def project(keyed: Server) -> openai.OpenAI:
    """The official client in a new project."""
    return keyed.client(keyed.new_key(f"project{next(_project_numbers)}"))


@pytest.fixture(scope="session")
def _stubbed(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[Server, Stub]]":
    impatient = {"NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "1", "NIGHTMILL_WORKER__CANCEL_GRACE_S": "0.5"}
    flags = ("--concurrency", "2", "--upstream-key", "sk-upstream")
    with (
        _stub() as upstream,
        serving(
            tmp_path_factory.mktemp("stubbed"), "--upstream", upstream.url, *flags, environment=impatient
        ) as running,
    ):
        yield running, upstream


@pytest.fixture
def stubbed(_stubbed: "tuple[Server, Stub]") -> "tuple[Server, Stub]":
    """A server with two slots and one attempt per line, and its model server, cleared of earlier requests."""
    _, upstream = _stubbed
    upstream.requests.clear()
    upstream.answer, upstream.delay_s = Stub.answer, 0.0
    return _stubbed


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a separate server; takes the arguments of `serving` after the folder."""
    with ExitStack() as stack:

        def start(*flags: str, folder: str = "served", **more: Any) -> Server:
            return stack.enter_context(serving(tmp_path / folder, *flags, **more))

        yield start


@pytest.fixture(scope="session")
def jsonl() -> Callable[..., bytes]:
    """Writes an input file: `jsonl(3)`, `jsonl(3, url=..., body={...})`."""
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

    def write(lines: int, *, url: str = CHAT, body: dict[str, Any] | None = None) -> bytes:
        rest = {"method": "POST", "url": url, "body": chat if body is None else body}
        return b"".join(
            json.dumps({"custom_id": f"line-{number}"} | rest).encode() + b"\n" for number in range(lines)
        )

    return write


@dataclass
class Stub:
    """A model server that keeps the requests of lines; those for its models and gauges are left out."""

    url: str
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answer: bytes = b'{"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}}'
    delay_s: float = 0.0
    host: str = ""


@pytest.fixture
def stub() -> Iterator[Callable[[], Stub]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(_stub())


@contextmanager
def _stub() -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            # nightmill's own cheap request is answered, so that what fails is the fault of the lines
            is_cheap = b'"content":"Hi"' in body
            answer = Stub.answer if is_cheap else made.answer
            if self.command == "POST" and not is_cheap:
                made.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                time.sleep(made.delay_s)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that disconnects during an answer

    listening = Quiet(("127.0.0.1", 0), Handler)
    made = Stub(f"http://127.0.0.1:{listening.server_port}/v1", host=f"127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
