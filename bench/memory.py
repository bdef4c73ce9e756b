"""Memory of the processes of a server for a batch of many lines and an upload of many gigabytes.

    python bench/memory.py --lines 1000000
    python bench/memory.py --upload-gb 5

Each run is compared with a small run, because growth would show a leak. Exits with 1 when a process of the
server takes more than 200 MB, or 25% more than in the small run. The emulator is shown and not checked. Linux
only: the peaks come from the kernel (VmHWM).
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_MB = 200
MOST_GROWTH = 1.25
SMALL_LINES = 50_000
SMALL_GB = 0.25
PART_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)/v1")
_BOUNDARY = "nightmill-memory"


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    pid: int

    def call(self, method: str, path: str, document: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = None if document is None else json.dumps(document)
        connection.request(method, f"/v1{path}", body, {"content-type": "application/json"})
        return _read(connection)

    def send_form(self, path: str, field: str, content: Iterator[bytes], *, size_bytes: int) -> Any:
        head = (
            f"--{_BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f"--{_BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="{field}"; filename="in.jsonl"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.putrequest("POST", f"/v1{path}")
        connection.putheader("content-type", f"multipart/form-data; boundary={_BOUNDARY}")
        connection.putheader("content-length", str(len(head) + size_bytes + len(tail)))
        connection.endheaders(head)
        for block in content:
            connection.send(block)
        connection.send(tail)
        return _read(connection)

    def download(self, file_id: str) -> Iterator[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", f"/v1/files/{file_id}/content")
        answer = connection.getresponse()
        while block := answer.read(BLOCK_BYTES):
            yield block
        connection.close()

    def peaks_mb(self) -> dict[str, float]:
        """Peak memory of each process, by its role."""
        found = {"api": _status_mb(self.pid, "VmHWM")}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                found[_name_of(pid)] = _status_mb(pid, "VmHWM")
        return found


def _read(connection: http.client.HTTPConnection) -> Any:
    answer = connection.getresponse()
    received = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {received[:300]!r}")
    return json.loads(received)


def _name_of(pid: int) -> str:
    """The process title of a child: its first role, or its kind."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    if name == "intake":
        return "keeper"
    return name.replace(":", " ")


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1_024
    raise RuntimeError(f"process {pid} has no {name}")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    environment = os.environ | {
        "NIGHTMILL_LIMITS__LINES_PER_FILE": str(1 << 40),
        "NIGHTMILL_LIMITS__INPUT_FILE_BYTES": str(1 << 40),
        "NIGHTMILL_LIMITS__UPLOAD_BYTES": str(1 << 40),
    }
    command = [
        sys.executable,
        "-m",
        "nightmill",
        "serve",
        "--emulate",
        "--port",
        "0",
        "--folder",
        str(folder),
    ]
    log = folder.with_suffix(".log")
    with log.open("wb") as sink:
        child = subprocess.Popen(command, env=environment, stderr=sink)
    try:
        while not (found := _LISTENS.search(log.read_text())):
            if child.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.02)
        yield Server(int(found[1]), child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def lines(count: int) -> Iterator[bytes]:
    """Short request lines, in blocks of ten thousand."""
    for first in range(0, count, 10_000):
        yield b"".join(
            b'{"custom_id": "line-%08d", "method": "POST", "url": "/v1/chat/completions", '
            b'"body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n' % number
            for number in range(first, min(first + 10_000, count))
        )


def run_batch(server: Server, count: int) -> None:
    """Uploads a file, runs a batch, downloads the output, and checks the number of lines."""
    size_bytes = sum(map(len, lines(count)))
    began = time.monotonic()
    uploaded = server.send_form("/files", "file", lines(count), size_bytes=size_bytes)
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = server.call("POST", "/batches", {"input_file_id": uploaded["id"], **asked})
    while batch["status"] not in {"completed", "failed", "expired", "cancelled"}:
        time.sleep(0.5)
        batch = server.call("GET", f"/batches/{batch['id']}")
    if batch["status"] != "completed" or batch["request_counts"]["completed"] != count:
        raise RuntimeError(f"the batch is {batch['status']} with {batch['request_counts']}")
    got = sum(block.count(b"\n") for block in server.download(batch["output_file_id"]))
    if got != count:
        raise RuntimeError(f"{got} output lines for {count} request lines")
    print(f"{count:,} lines in {time.monotonic() - began:.0f} s")


def run_upload(server: Server, size_bytes: int) -> None:
    """Uploads one file in parts, completes the upload, downloads the file, and compares it."""
    block = b'{"custom_id": "' + b"x" * (BLOCK_BYTES - len(b'{"custom_id": ""}\n')) + b'"}\n'
    began = time.monotonic()
    asked = {
        "bytes": size_bytes,
        "filename": "in.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
    }
    upload = server.call("POST", "/uploads", asked)
    sent, part_ids = hashlib.md5(usedforsecurity=False), []
    for first in range(0, size_bytes, PART_BYTES):
        part_bytes = min(PART_BYTES, size_bytes - first)
        part = [block] * (part_bytes // len(block))
        for piece in part:
            sent.update(piece)
        answer = server.send_form(f"/uploads/{upload['id']}/parts", "data", iter(part), size_bytes=part_bytes)
        part_ids.append(answer["id"])
    in_s = time.monotonic() - began
    done = server.call(
        "POST", f"/uploads/{upload['id']}/complete", {"part_ids": part_ids, "md5": sent.hexdigest()}
    )
    joined_s = time.monotonic() - began - in_s
    got = hashlib.md5(usedforsecurity=False)
    for piece in server.download(done["file"]["id"]):
        got.update(piece)
    if got.digest() != sent.digest():
        raise RuntimeError("the download differs from what was sent")
    out_s = time.monotonic() - began - in_s - joined_s
    server.call("DELETE", f"/files/{done['file']['id']}")
    print(f"{size_bytes / 1e9:.2f} GB: {in_s:.0f} s in, {joined_s:.0f} s joining, {out_s:.0f} s out")


def measured(folder: Path, what: str, amount: int) -> dict[str, float]:
    work = run_batch if what == "lines" else run_upload
    try:
        with serving(folder / "data") as server:
            work(server, amount)
            return server.peaks_mb()
    finally:
        shutil.rmtree(folder / "data", ignore_errors=True)


def compared(small: dict[str, float], large: dict[str, float]) -> bool:
    """Prints the table; returns whether every process is within the limits."""
    is_well = True
    print(f"{'process':28}{'small':>10}{'large':>10}   peak resident MB")
    for name, peak_mb in large.items():
        is_judged = not name.startswith("nightmill.")
        is_bad = is_judged and (peak_mb > MOST_MB or peak_mb > small[name] * MOST_GROWTH)
        is_well = is_well and not is_bad
        print(f"{name:28}{small[name]:10.0f}{peak_mb:10.0f}{'   TOO MUCH' if is_bad else ''}")
    return is_well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--upload-gb", type=float, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the data goes; a temporary folder here if not given"
    )
    asked = parser.parse_args()
    if not asked.lines and not asked.upload_gb:
        parser.error("name --lines, --upload-gb or both")
    folder = Path(tempfile.mkdtemp(prefix="nightmill-memory-", dir=asked.folder or Path.cwd()))
    is_well = True
    try:
        needed_bytes = max(asked.lines * 1_500, asked.upload_gb * 2.2e9)
        if shutil.disk_usage(folder).free < needed_bytes + (1 << 30):
            print(f"there is not enough room here: {needed_bytes / 1e9:.0f} GB are needed")
            return 75
        if asked.lines:
            small = measured(folder, "lines", min(SMALL_LINES, asked.lines))
            is_well &= compared(small, measured(folder, "lines", asked.lines))
        if asked.upload_gb:
            blocks = [max(1, int(gb * 1e9) // BLOCK_BYTES) for gb in (SMALL_GB, asked.upload_gb)]
            small = measured(folder, "upload", blocks[0] * BLOCK_BYTES)
            is_well &= compared(small, measured(folder, "upload", blocks[1] * BLOCK_BYTES))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
