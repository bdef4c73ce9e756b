"""A real `nightmill serve` in processes of its own, started as the test says."""

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LISTENS = re.compile(r"listens on http://\S+?:(\d+)/v1")
END = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    log_lines: list[str] = field(default_factory=list)

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and the document that came back; text when it is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            names = {name.lower(): value for name, value in answer.getheaders()}
            is_json = names.get("content-type") == "application/json"
            return answer.status, names, json.loads(content) if is_json else content
        finally:
            connection.close()

    def upload(self, content: bytes, *, purpose: str = "batch") -> tuple[int, dict[str, str], Any]:
        edge = secrets.token_hex(8)
        form = (
            f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        ).encode()
        form += content + f"\r\n--{edge}--\r\n".encode()
        return self.send("POST", "/v1/files", form, {"Content-Type": f"multipart/form-data; boundary={edge}"})

    def create(self, file_id: str) -> tuple[int, dict[str, str], Any]:
        asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self.send("POST", "/v1/batches", json.dumps(asked).encode())

    def batch(self, content: bytes) -> str:
        """A batch of the content; its id."""
        status, _, file = self.upload(content)
        assert status == 200, file
        status, _, batch = self.create(file["id"])
        assert status == 200, batch
        return batch["id"]

    def see(self, batch_id: str) -> dict[str, Any]:
        status, _, batch = self.send("GET", f"/v1/batches/{batch_id}")
        assert status == 200, batch
        return batch

    def until(
        self, batch_id: str, holds: Callable[[dict[str, Any]], bool], *, timeout_s: float = 60
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not holds(batch := self.see(batch_id)):
            assert time.monotonic() < deadline, (batch, self.log_lines[-20:])
            time.sleep(0.05)
        return batch

    def until_ended(self, batch_id: str, *, timeout_s: float = 60) -> dict[str, Any]:
        return self.until(batch_id, lambda batch: batch["status"] in END, timeout_s=timeout_s)

    def until_said(self, piece: str, *, timeout_s: float = 60) -> str:
        """What `/ready` says, as soon as the piece is in it."""
        deadline = time.monotonic() + timeout_s
        while piece not in (trouble := self.trouble()):
            assert time.monotonic() < deadline, (trouble, self.log_lines[-20:])
            time.sleep(0.05)
        return trouble

    def until_no_problem_is_shown(self, *, timeout_s: float = 60) -> None:
        """Waits for `/ready` without a problem: workers report what they hold every few seconds only."""
        deadline = time.monotonic() + timeout_s
        while (ready := self.send("GET", "/ready")[2]) != {"status": "ready"}:
            assert time.monotonic() < deadline, ready
            time.sleep(0.05)

    def until_logged(self, piece: str, *, timeout_s: float = 60) -> str:
        deadline = time.monotonic() + timeout_s
        while not (found := [line for line in self.log_lines if piece in line]):
            assert time.monotonic() < deadline, self.log_lines[-20:]
            time.sleep(0.05)
        return found[0]

    def logged(self, *pieces: str) -> list[str]:
        """The log lines with all these pieces."""
        return [line for line in self.log_lines if all(piece in line for piece in pieces)]

    def trouble(self) -> str:
        """What `/ready` says that keeps lines from being answered; empty without any."""
        status, _, ready = self.send("GET", "/ready")
        assert (status, ready["status"]) == (200, "ready")
        return ready.get("trouble", "")

    def kill(self) -> None:
        """As `kill -9` of `nightmill serve`. Its child processes end by themselves."""
        self.process.kill()
        self.process.wait()

    def rows(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Every line of the output file and the error file."""
        files = [batch[name] for name in ("output_file_id", "error_file_id") if batch[name] is not None]
        texts = [self.send("GET", f"/v1/files/{file_id}/content")[2] for file_id in files]
        return [json.loads(row) for text in texts for row in text.splitlines()]


def request_lines(count: int, *, padding: int = 0) -> bytes:
    rows = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "m",
                "messages": [{"role": "user", "content": f"marker:{number}. {'x' * padding}"}],
            },
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def assert_each_line_once(rows: Sequence[dict[str, Any]], count: int) -> None:
    assert sorted(row["custom_id"] for row in rows) == sorted(f"line-{number}" for number in range(count))


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    flags: Sequence[str] = ("--emulate",),
    wrap: Callable[[list[str]], list[str]] = lambda words: words,
    port: int = 0,
    **settings: Any,
) -> Iterator[Served]:
    """Starts the server, and ends it with SIGTERM.

    Args:
        wrap: puts something in front of the command line.
        settings: as in the environment, without the prefix: `retention__free_bytes=0`.
    """
    environment = {f"NIGHTMILL_{name.upper()}": str(value) for name, value in settings.items()}
    words = [sys.executable, "-m", "nightmill", "serve", *flags, "--port", str(port), "--folder", str(folder)]
    process = subprocess.Popen(wrap(words), stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    served = Served(process, 0)
    listens = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                served.log_lines.append(line)
                if found := _LISTENS.search(line):
                    served.port = int(found[1])
                    listens.set()
        listens.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert listens.wait(90)
        assert served.port, served.log_lines
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            listener.join(60)


@dataclass
class Servers:
    """The server of a test, in one run killed in the middle and started again on the same folder.

    Args:
        settings: as in `serving`.
        is_killed: whether `middle` kills it.
    """

    folder: Path
    url: str
    settings: dict[str, Any]
    is_killed: bool
    stack: contextlib.ExitStack
    lives: list[Served] = field(default_factory=list)

    def start(self, **settings: Any) -> Served:
        self.settings |= settings
        flags = ("--upstream", self.url)
        self.lives.append(self.stack.enter_context(serving(self.folder, flags=flags, **self.settings)))
        return self.lives[-1]

    def middle(self) -> Served:
        """The server that goes on from here."""
        if not self.is_killed:
            return self.lives[-1]
        self.lives[-1].kill()
        return self.start()


def wait_until(holds: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
