"""A real server over a model server that fails the lines that a test names."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from nightmill import cli
from nightmill.client import Client
from tests.acceptance.conftest import CHAT, Answer, Server, ended, serving

Failure = tuple[int, str]


@dataclass
class Moody:
    """A model server. `failing` has the prompts that fail, with status and code; `held` those that wait."""

    url: str
    failing: dict[str, Failure] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    may_answer: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)


@contextmanager
def moody() -> Iterator[Moody]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
            prompt = body["messages"][0]["content"]
            made.asked.append(prompt)
            if prompt in made.held:
                made.may_answer.wait(60)
            status, code = made.failing.get(prompt, (200, ""))
            usage = {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}
            document: dict[str, Any] = {
                "choices": [{"message": {"role": "assistant", "content": f"answer to {prompt}"}}],
                "usage": usage,
            }
            if status != 200:
                document = {"error": {"message": "refused", "type": "invalid_request_error", "code": code}}
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...

    listening = Quiet(("127.0.0.1", 0), Handler)
    made = Moody(f"http://127.0.0.1:{listening.server_port}/v1")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.may_answer.set()
        listening.shutdown()
        listening.server_close()
        thread.join()


@dataclass
class Mill:
    """The server and its model server."""

    server: Server
    upstream: Moody
    client: Client

    def submit(self, *prompts: str, blank: str = "", **options: Any) -> Batch:
        """A batch whose line N has the custom_id and the prompt of the N-th prompt; `blank` precedes each."""
        text = "".join(blank + line(prompt) for prompt in prompts)
        uploaded = self.client.openai.files.create(file=("night.jsonl", text.encode()), purpose="batch")
        return self.client.openai.batches.create(
            input_file_id=uploaded.id,
            endpoint=CHAT,
            completion_window="24h",
            extra_body={"nightmill": options} if options else {},
        )

    def ended(self, batch_id: str) -> Batch:
        return ended(self.client.openai, batch_id)

    def run(self, *prompts: str, **options: Any) -> Batch:
        return self.ended(self.submit(*prompts, **options).id)

    def get(self, path: str) -> Answer:
        return self.server.send("GET", f"/nightmill/v1/batches/{path}")

    def post(self, path: str, document: Any) -> Answer:
        return self.server.send(
            "POST",
            f"/nightmill/v1/batches/{path}",
            json.dumps(document),
            {"Content-Type": "application/json"},
        )

    def input_of(self, batch: Batch) -> bytes:
        return self.client.openai.files.content(batch.input_file_id).content


def line(prompt: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return json.dumps({"custom_id": prompt, "method": "POST", "url": CHAT, "body": body}) + "\n"


@pytest.fixture(scope="session")
def _mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    environment = {
        "NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "1",
        "NIGHTMILL_WORKER__CANCEL_GRACE_S": "0.2",
        "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "4",
        "NIGHTMILL_WORKER__BEAT_S": "0.1",
        "NIGHTMILL_PRICES__M__INPUT": "1000",
        "NIGHTMILL_PRICES__M__OUTPUT": "2000",
    }
    with (
        moody() as upstream,
        serving(
            tmp_path_factory.mktemp("mill"), "--upstream", upstream.url, environment=environment
        ) as server,
        Client(f"{server.url}/v1") as client,
    ):
        yield Mill(server, upstream, client)


@pytest.fixture
def mill(_mill: Mill) -> Iterator[Mill]:
    """The server, with a model server that fails nothing yet."""
    _mill.upstream.failing.clear()
    _mill.upstream.held.clear()
    _mill.upstream.asked.clear()
    _mill.upstream.may_answer.clear()
    yield _mill
    _mill.upstream.may_answer.set()


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def nightmill(mill: Mill, capfd, monkeypatch, tmp_path: Path) -> Callable[..., Ran]:
    """Runs a command line in this process against the server."""
    for name in [*os.environ]:
        if name.startswith(("NIGHTMILL_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{mill.server.url}/v1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Ran:
        code = cli.invoke([str(word) for word in words])
        printed = capfd.readouterr()
        return Ran(int(code), printed.out, printed.err)

    return run
