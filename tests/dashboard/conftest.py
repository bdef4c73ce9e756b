"""A real server with the emulator, and a real Chromium that looks at its dashboard.

The browser is Debian's (`chromium`), driven by playwright. Without it the tests of this folder that need a
browser are skipped, unless TEST_BROWSER=1 says that it must be there.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

NIGHTMILL = Path(sys.executable).with_name("nightmill")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# A server that a test stops, and pages that a test is refused.
EXPECTED = ("ERR_", "status of 4", "htmx:sse:error")
READY_S = 60.0
WAIT_MS = 20_000


@dataclass
class RunningServer:
    """A `nightmill serve --emulate` of its own."""

    url: str
    folder: Path
    environment: dict[str, str]
    process: "subprocess.Popen[bytes]"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.environment.get("OPENAI_API_KEY", "unused"))

    def command(self, *words: str) -> str:
        """The output of a command of nightmill on the data folder of this server."""
        done = subprocess.run(
            [NIGHTMILL, *words], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def get(self, path: str, **headers: str) -> Any:
        """The JSON document of a GET."""
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, document: Any = None, **headers: str) -> Any:
        """The JSON document of a POST."""
        body = b"" if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def submit(self, lines: list[dict[str, Any]], **options: Any) -> str:
        """Uploads the lines and creates a batch; its id."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        file = self.client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
        batch = self.client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **options
        )
        return batch.id

    def wait_until(self, batch_id: str, *statuses: str) -> Any:
        """The batch once it has one of the statuses; without any, once it has ended."""
        wanted = statuses or ("completed", "failed", "expired", "cancelled")
        ends_at = time.monotonic() + 60
        while time.monotonic() < ends_at:
            batch = self.client.batches.retrieve(batch_id)
            if batch.status in wanted:
                return batch
            time.sleep(0.1)
        raise AssertionError(f"{batch_id} did not become {wanted} within 60 s")

    def new_key(self, scope: str = "project", project: str = "default") -> tuple[str, str]:
        """The secret and the id of a new key; the server needs an admin key from the first on."""
        fields = {"name": "test", "scope": scope, "project_id": project}
        made = self.post("/nightmill/v1/keys", fields, Authorization=f"Bearer {self.client.api_key}")
        return made["secret"], made["id"]

    def wait_for_lines(self, batch_id: str, count: int) -> None:
        """Until so many lines of a batch are done."""
        ends_at = time.monotonic() + 120
        while time.monotonic() < ends_at:
            counts = self.client.batches.retrieve(batch_id).request_counts
            if counts is not None and counts.completed + counts.failed >= count:
                return
            time.sleep(0.2)
        raise AssertionError(f"{batch_id} did not get {count} answers within 120 s")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start_again(self) -> None:
        """Starts the server again on the same port and folder."""
        self.process = _started(self.environment, self.folder)
        _wait_until_ready(self)


def chat_line(custom_id: str, text: str = "Hello", model: str = "emulated") -> dict[str, Any]:
    """A request line; the emulator takes orders for faults in the text (docs/testing.md)."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": text}]},
    }


@contextmanager
def running_server(folder: Path, **environment: str) -> Iterator[RunningServer]:
    """`nightmill serve --emulate` on a free port.

    Args:
        environment: settings, such as `NIGHTMILL_EMULATOR__DELAY_S="0.05"`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "NIGHTMILL_FOLDER": str(folder / "data"),
        "NIGHTMILL_API__HOST": "127.0.0.1",
        "NIGHTMILL_API__PORT": str(port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "unused",
        "NIGHTMILL_API__DRAIN_S": "0.5",
        **environment,
    }
    server = RunningServer(f"http://127.0.0.1:{port}", folder, environment, _started(environment, folder))
    try:
        _wait_until_ready(server)
        yield server
    finally:
        server.stop()


def _started(environment: dict[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            [NIGHTMILL, "serve", "--emulate"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _wait_until_ready(server: RunningServer) -> None:
    ends_at = time.monotonic() + READY_S
    while time.monotonic() < ends_at:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError((server.folder / "server.log").read_text(errors="replace"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests that make their own batches and leave the server as it was."""
    with running_server(tmp_path_factory.mktemp("dashboard")) as running:
        yield running


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with keys."""
    with running_server(tmp_path_factory.mktemp("locked")) as running:
        running.environment["OPENAI_API_KEY"], _ = running.new_key("admin")
        yield running


@pytest.fixture(scope="session")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose dashboard shows no prompts and answers."""
    with running_server(tmp_path_factory.mktemp("hiding"), NIGHTMILL_DASHBOARD__CONTENT="false") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a module.

    While it is open an event loop runs. So a module with a browser has no asynchronous tests, and the browser
    is closed before the next module.
    """
    if CHROMIUM is None:
        if os.environ.get("TEST_BROWSER") == "1":
            raise AssertionError("TEST_BROWSER=1, but there is no chromium: apt-get install chromium")
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without cookies."""
    # Without transitions, colours are final as soon as the theme has changed.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab. Any error of a script, and anything that the security policy blocks, fails the test."""
    expect.set_options(timeout=WAIT_MS)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"error of a script: {error}"))
    page.on(
        "console",
        lambda message: (
            problems.append(f"console: {message.text}")
            if message.type == "error" and not any(known in message.text for known in EXPECTED)
            else None
        ),
    )
    yield page
    assert problems == []
