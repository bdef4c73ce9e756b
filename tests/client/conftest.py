"""A minimal HTTP server that answers as the test sets it, for client tests that need no real server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nightmill.client import ApiKeyAuth, Client


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Server:
    """Answers with the result of `answer` (status, body, further headers) and records the requests."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Asked], tuple[int, bytes, dict[str, str]]] = lambda _: (404, b"", {})


@pytest.fixture(autouse=True)
def short_pauses_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `openai` package repeats failed requests; its pauses of a second prove nothing here."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    with answering_server() as running:
        yield running


@contextmanager
def answering_server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self.rfile.read(length))
            known.asked.append(asked)
            status, body, headers = known.answer(asked)
            self.send_response(status)
            headers = {"content-type": "application/json", "content-length": str(len(body))} | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            if int(headers["content-length"]) != len(body):
                self.close_connection = True

        do_POST = do_DELETE = do_GET  # noqa: N815 - http.server looks these names up

        def log_message(self, *_: object) -> None: ...

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    known = Server(f"http://127.0.0.1:{listener.server_port}/v1")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield known
    listener.shutdown()
    thread.join()
    listener.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, ApiKeyAuth("sk-test")) as client:
        yield client


@pytest.fixture
def batch_json() -> Callable[..., bytes]:
    def make(**changes: object) -> bytes:
        batch = {
            "id": "batch_1",
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "model": None,
            "errors": None,
            "input_file_id": "file-1",
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": 1_700_000_000,
            "expires_at": 1_700_086_400,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": None,
        }
        return json.dumps(batch | changes).encode()

    return make
