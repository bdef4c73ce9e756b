"""A real `nightmill serve` to measure, and the requests of the benchmarks."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.stubs import CLIENT_CORE, free_port

_BOUNDARY = "nightmill-bench-5b1f"
_IDLE_S = 1.0
_START_S = 180.0  # on a machine with much other work
_DONE = frozenset({"completed", "failed", "expired", "cancelled"})


class Server:
    """One running server; `pids` names its processes: api, worker 0, ..., keeper."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.pids: dict[str, int] = {}
        self._used = 0.0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        if time.monotonic() - self._used > _IDLE_S:
            self._connection.close()  # the server may be about to close the connection
        text = None if body is None else json.dumps(body)
        headers = {} if body is None else {"content-type": "application/json"}
        self._connection.request(method, path, text, headers)
        response = self._connection.getresponse()
        received = response.read()
        self._used = time.monotonic()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {received[:300]!r}")
        return json.loads(received) if received else None

    def upload(self, path: Path) -> str:
        """Uploads the file as one form, as clients do; returns its id."""
        return str(json.loads(send_form(self.port, "/v1/files", path))["id"])

    def create(self, file_id: str) -> str:
        batch = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        return str(self.call("POST", "/v1/batches", batch)["id"])

    def batch(self, batch_id: str) -> Any:
        return self.call("GET", f"/v1/batches/{batch_id}")

    def wait(self, batch_id: str, *, every_s: float = 0.05, until: Sequence[str] = ()) -> Any:
        """The batch once it has ended, or reached one of the statuses in `until`."""
        while True:
            batch = self.batch(batch_id)
            if batch["status"] in _DONE or batch["status"] in until:
                return batch
            time.sleep(every_s)

    def download(self, file_id: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", f"/v1/files/{file_id}/content")
        response = connection.getresponse()
        while chunk := response.read(chunk_bytes):
            yield chunk
        connection.close()


def send_form(port: int, path: str, file: Path) -> bytes:
    """Posts a file as a form, directly from the page cache; returns the response."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="input.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.putrequest("POST", path)
    connection.putheader("content-type", f"multipart/form-data; boundary={_BOUNDARY}")
    connection.putheader("content-length", str(len(head) + file.stat().st_size + len(tail)))
    connection.endheaders(head)
    with file.open("rb") as body:
        connection.sock.sendfile(body)
    connection.send(tail)
    response = connection.getresponse()
    received = response.read()
    connection.close()
    if response.status >= 300:
        raise RuntimeError(f"POST {path}: {response.status} {received[:300]!r}")
    return received


@contextmanager
def serving(
    folder: Path,
    *,
    upstream: str | Sequence[str],
    concurrency: int | None = 256,
    workers: int = 1,
    source: Path | None = None,
    environment: dict[str, str] | None = None,
    pinned: bool = True,
    begin_with: Path | None = None,
) -> Iterator[Server]:
    """A server on an empty folder, or on the folder `begin_with`. A single worker runs on the core of wrk.

    Args:
        upstream: a URL, or several as NAME=URL.
        concurrency: None for the limit that finds itself.
        source: a `src` folder other than the installed one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if begin_with is not None:
        begin_with.rename(folder)
    port = free_port()
    variables = {
        **os.environ,
        "NIGHTMILL_LOG_LEVEL": "warning",
        "NIGHTMILL_RETENTION__FREE_BYTES": "0",
        "NIGHTMILL_LIMITS__INPUT_FILE_BYTES": str(1 << 34),
        "NIGHTMILL_LIMITS__LINES_PER_FILE": str(1 << 30),
        "NIGHTMILL_LIMITS__BATCHES_PER_HOUR": "0",
        **(environment or {}),
    }
    if source is not None:
        variables["PYTHONPATH"] = str(source)
    arguments = [sys.executable, "-m", "nightmill", "serve", "--folder", str(folder), "--port", str(port)]
    arguments += ["--workers", str(workers)]
    for url in [upstream] if isinstance(upstream, str) else upstream:
        arguments += ["--upstream", url]
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    child = subprocess.Popen(arguments, env=variables, stdout=subprocess.DEVNULL)
    try:
        server = Server(port, child.pid)
        wait_until_ready(server, child)
        server.pids = _parts_of(child.pid, workers)
        if pinned and (os.cpu_count() or 1) > 1:
            for name, pid in server.pids.items():
                if name.startswith("worker") and workers == 1:
                    _pin(pid, CLIENT_CORE)
        yield server
    finally:
        end_child(child, within_s=30)


def end_child(child: "subprocess.Popen[bytes]", *, within_s: float) -> None:
    """Asks a process to end; kills it if it has not ended in time."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(within_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(10)


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def wait_until_ready(server: Server, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while True:
        if child.poll() is not None:
            raise RuntimeError(f"nightmill serve ended with {child.returncode}")
        try:
            server.call("GET", "/ready")
            return
        except (OSError, RuntimeError, http.client.HTTPException):
            if time.monotonic() > until:
                raise
            server._connection.close()  # noqa: SLF001 - our own
            time.sleep(0.02)


def _parts_of(pid: int, workers: int) -> dict[str, int]:
    until = time.monotonic() + 30
    while True:
        found = {"api": pid}
        for child in machine.children(pid):
            name = machine.name(child)
            if match := re.fullmatch(r"worker:(\d+)", name):
                found[f"worker {match[1]}"] = child
            elif name == "intake":
                found["keeper"] = child
        if len(found) == workers + 2:
            return found
        if time.monotonic() > until:
            raise RuntimeError(f"expected {workers} workers and a keeper, found {found}")
        time.sleep(0.02)
