"""Starts the emulator as a child process, as its users do."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Emulator:
    """A running emulator."""

    port: int
    child: subprocess.Popen[bytes]

    def request(
        self, method: str, path: str, body: object = None, *, timeout_s: float = 60
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body)
            connection.request(method, path, content)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def ask(self, path: str, body: object) -> Any:
        status, _, content = self.request("POST", path, body)
        assert status == 200, content
        return json.loads(content)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Emulator]:
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "nightmill.runtime.child",
        "emulator",
        "--port-file",
        str(port_file),
        *arguments,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        try:
            until = time.monotonic() + 60
            while not port_file.exists():
                assert child.poll() is None, "the emulator did not start"
                assert time.monotonic() < until, "the emulator did not start in time"
                time.sleep(0.01)
            yield Emulator(int(port_file.read_text()), child)
        finally:
            child.kill()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("emulator")) as emulator:
        yield emulator


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Emulator]]:
    """Starts one with arguments of the test's own; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(running(tmp_path, *arguments))
