"""Starts a server, runs an example batch through it with the official openai client, stops the server.

make run                                   answers made up by the emulator
make run MODEL=path/to/model.gguf          a local model
make run UPSTREAM=http://localhost:8000/v1 a model server
python examples/first_batch.py --url http://127.0.0.1:8080/v1      a running nightmill
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Event
from urllib.parse import urljoin, urlsplit

from openai import APIStatusError, OpenAI
from openai.types import Batch, BatchRequestCounts

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / ".run"  # a folder for each port, kept so that the batch can be seen later
PORT = 8080
NIGHTMILL = Path(sys.executable).with_name("nightmill")
FINAL = {"completed", "failed", "expired", "cancelled"}
READY_S = 300.0  # a large model takes long to load
STOP_S = 40.0
POLL_S = 0.25
QUIET_S = 3.0
SHOWN = 3
EMULATED_DELAY_S = 0.5  # without a delay the batch would end before any progress is shown
LINES_FOR_A_MODEL = 20  # a small number, so that a laptop finishes soon


@contextmanager
def server(
    upstream: list[str], *, port: int = 0, folder: Path | None = None, **environment: str
) -> Generator[str]:
    """`nightmill serve` as a child process; yields its base URL.

    Args:
        port: 0 takes a free one.
        folder: the data folder; without one the data is removed at the end.
    """
    port = port or free_port(0)
    with tempfile.TemporaryDirectory(prefix="nightmill-first-batch-") as own:
        log = Path(own, "server.log")
        environment |= os.environ | {
            "NIGHTMILL_FOLDER": str(folder or Path(own, "data")),
            "NIGHTMILL_API__HOST": "127.0.0.1",
            "NIGHTMILL_API__PORT": str(port),
        }
        with log.open("wb") as sink:
            child = subprocess.Popen(
                [NIGHTMILL, "serve", *upstream], env=environment, stdout=sink, stderr=subprocess.STDOUT
            )
        try:
            wait_until_ready(child, f"http://127.0.0.1:{port}/ready", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def free_port(wanted: int) -> int:
    """The port if it is free, and any free one for 0; 0 if the port is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def wait_until_ready(child: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        if child.poll() is not None:
            sys.exit(f"the server ended with {child.returncode}:\n{log.read_text(errors='replace')}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http URL
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    sys.exit(f"the server was not ready after {READY_S:.0f} s:\n{log.read_text(errors='replace')}")


def input_lines(client: OpenAI, *, limit: int | None) -> str:
    """The lines of chat.jsonl; if the server does not offer their model, its first model replaces it."""
    with HERE.joinpath("chat.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in islice(file, limit)]
    try:
        offered = [model.id for model in client.models.list()]
    except APIStatusError as error:
        print(error.message)
        offered = []
    if offered and lines[0]["body"]["model"] not in offered:
        for line in lines:
            line["body"]["model"] = offered[0]
    print(f"sending {len(lines)} tickets to be sorted by {lines[0]['body']['model']}")
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def run_and_show(client: OpenAI, *, limit: int | None) -> Batch:
    content = input_lines(client, limit=limit).encode()
    uploaded = client.files.create(file=("chat.jsonl", content), purpose="batch")
    started = time.monotonic()
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    print(f"{uploaded.id} uploaded, {batch.id} created")
    shown, reported = "", ""
    moved = time.monotonic()
    while True:
        if (progress := f"{batch.status:<12} {counts_text(batch.request_counts)}") != shown:
            print(f"{time.monotonic() - started:6.1f} s  {progress}", flush=True)
            shown, moved = progress, time.monotonic()
        elif time.monotonic() - moved > QUIET_S and (why := trouble(client)) not in {"", reported}:
            print(f"{time.monotonic() - started:6.1f} s  still waiting: {why}", flush=True)
            reported = why
        if batch.status in FINAL:
            show(client, batch)
            return batch
        time.sleep(POLL_S)
        batch = client.batches.retrieve(batch.id)


def counts_text(counts: BatchRequestCounts | None) -> str:
    """`280 of 300 done (260 ok, 20 failed)`; empty until the server has counted the lines."""
    if not counts or not counts.total:
        return ""
    done = counts.completed + counts.failed
    return f"{done} of {counts.total} done ({counts.completed} ok, {counts.failed} failed)"


def trouble(client: OpenAI) -> str:
    """Why lines are not being answered, from the server's /ready; empty if there is no reason."""
    try:
        with urllib.request.urlopen(urljoin(str(client.base_url), "../ready"), timeout=2) as answer:  # noqa: S310 - http
            return str(json.load(answer).get("trouble", ""))
    except (urllib.error.URLError, OSError, ValueError):
        return ""


def show(client: OpenAI, batch: Batch) -> None:
    for error in (batch.errors.data if batch.errors else None) or []:
        print(f"line {error.line}: {error.message}")
    for file_id in (batch.output_file_id, batch.error_file_id):
        if not file_id:
            continue
        lines = client.files.content(file_id).text.splitlines()
        print(f"\n{file_id}: {len(lines)} lines, the first of them:")
        for line in map(json.loads, lines[:SHOWN]):
            answer = line["error"] or line["response"]["body"]
            if choices := answer.get("choices"):
                answer = choices[0]["message"]["content"]
            print(f"  {line['custom_id']}: {answer}")


def let_it_be_seen(batch: Batch, url: str, folder: Path) -> None:
    """Names the page of the batch. In a terminal the server goes on until Ctrl-C."""
    page = urljoin(url, f"/ui/batches/{batch.id}")
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"\nSee the batch in a browser: {page}\nThe server runs until Ctrl-C.", flush=True)
        with suppress(KeyboardInterrupt):
            Event().wait()
        return
    places = f"--port {urlsplit(url).port} --folder {os.path.relpath(folder)}"
    command = f"{os.path.relpath(NIGHTMILL)} serve --emulate {places}"
    print(f"\nSee the batch in a browser: {page}\nwith: {command}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an example batch through nightmill.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="base URL of a running server; none is started")
    where.add_argument("--model", help="a GGUF file")
    where.add_argument("--upstream", help="base URL of an OpenAI-compatible model server")
    parser.add_argument("--lines", type=int, help="how many lines of chat.jsonl to send")
    asked = parser.parse_args()

    key = os.environ.get("OPENAI_API_KEY", "unused")
    if asked.url:
        batch = run_and_show(OpenAI(base_url=asked.url, api_key=key), limit=asked.lines)
    else:
        is_real = asked.model or asked.upstream
        upstream = ["--emulate"]
        if asked.model:
            upstream = ["--model", asked.model]
        elif asked.upstream:
            upstream = ["--upstream", asked.upstream]
        print(f"starting: nightmill serve {' '.join(upstream)}")
        port = free_port(PORT) or free_port(0)
        delay_s = str(EMULATED_DELAY_S)
        folder = DATA / str(port)
        with server(upstream, port=port, folder=folder, NIGHTMILL_EMULATOR__DELAY_S=delay_s) as url:
            limit = asked.lines or (LINES_FOR_A_MODEL if is_real else None)
            batch = run_and_show(OpenAI(base_url=url, api_key=key), limit=limit)
            if not is_real:
                print("\nThe emulator made these up. A real model: make run MODEL=file.gguf, or UPSTREAM=url")
            let_it_be_seen(batch, url, folder)
    sys.exit(0 if batch.status == "completed" else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
