"""A real server with a secret in every place for one, and everything visible of it from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "nightmill")
UPSTREAM_KEY = "upstream-secret-4711"
HEADER_SECRET = "header-secret-4712"
PROMPT = "prompt-secret-4713"
CHAT = "/v1/chat/completions"


@dataclass
class Served:
    """One running server."""

    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    log: Path
    key: str

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"Authorization": f"Bearer {self.key}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )

    def send_json(self, path: str, document: Any) -> tuple[int, dict[str, str], bytes]:
        return self.send("POST", path, json.dumps(document).encode(), Content_Type="application/json")

    def upload(self, content: bytes, filename: str = "in.jsonl") -> str:
        quoted = filename.replace("\\", "\\\\").replace('"', '\\"')
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\n'
        tail = '\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
        body = head.encode() + content + tail.encode()
        status, _, answer = self.send(
            "POST", "/v1/files", body, Content_Type="multipart/form-data; boundary=b"
        )
        assert status == 200, answer
        return json.loads(answer)["id"]

    def run_batch(self, content: bytes, **more: Any) -> dict[str, Any]:
        file_id = self.upload(content)
        document = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **more}
        status, _, answer = self.send_json("/v1/batches", document)
        assert status == 200, answer
        batch_id = json.loads(answer)["id"]
        while (batch := json.loads(self.send("GET", f"/v1/batches/{batch_id}")[2]))["status"] not in (
            "completed",
            "failed",
        ):
            time.sleep(0.02)
        return batch

    def process_ids(self) -> list[int]:
        """Process ids of the server and all its descendants."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found


@contextmanager
def upstream() -> Iterator[str]:
    """An upstream that answers with the status and headers that the line names, and records its requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            refused = b'{"error": {"message": "bad key %s\\r\\n\x1b[2J2026-01-01 ERROR forged"}}'
            answer = refused % self.headers.get("authorization", "").encode()
            self.send_response(400)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.send_header("set-cookie", "x=1")
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            answer = b'{"object": "list", "data": []}'
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1"
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def serving(folder: Path, log: Path, *flags: str, **environment: str) -> Iterator[Served]:
    made = subprocess.run(
        [*COMMAND, "keys", "create", "test", "--folder", folder],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--folder", folder, *flags],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=os.environ | environment,
        )
    try:
        give_up_at = time.monotonic() + 60
        while not (found := re.search(r"listens on http://127\.0\.0\.1:(\d+)/", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        yield Served(process, int(found[1]), folder, log, made.stdout.strip())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("served")
    secrets = {
        "NIGHTMILL_LOG_LEVEL": "debug",
        "NIGHTMILL_UPSTREAM__API_KEY": UPSTREAM_KEY,
        "NIGHTMILL_UPSTREAM__HEADERS__X-SECRET": HEADER_SECRET,
    }
    with upstream() as url, serving(place / "data", place / "log", "--upstream", url, **secrets) as running:
        yield running


@pytest.fixture(scope="session")
def line() -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    row = {"custom_id": "a\r\n2026-01-01T00:00:00 ERROR forged", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(row).encode() + b"\n"


@pytest.fixture(scope="session")
def secrets(served: Served) -> tuple[str, ...]:
    return (UPSTREAM_KEY, HEADER_SECRET, served.key)


@pytest.fixture(scope="session")
def prompt() -> str:
    return PROMPT
