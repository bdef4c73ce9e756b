"""A real server is paused in the middle of a batch, killed while it is paused, and goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nightmill.client import Client
from tests.slow import only_slow
from tests.threaded_server import AnsweringHandler, listening

_LISTENS = re.compile(r"listens on (http://\S+/v1)")
LIMIT_S = 90.0


class Upstream:
    """Answers each line while `gate` is set; counts what it was asked, and the most attempts at once."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.answered = Counter[str]()
        self.in_flight = self.most = 0
        self.gate = threading.Event()
        self.lock = threading.Lock()

    def answer(self, body: bytes) -> bytes:
        name = json.loads(body)["messages"][0]["content"]
        with self.lock:
            self.asked[name] += 1
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        self.gate.wait(LIMIT_S)
        time.sleep(0.02)  # so that several are in flight
        with self.lock:
            self.in_flight -= 1
            self.answered[name] += 1
        return json.dumps({"choices": [{"message": {"content": name}}]}).encode()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def upstream(stack: ExitStack) -> tuple[Upstream, str]:
    made = Upstream()

    class Handler(AnsweringHandler):
        def do_GET(self) -> None:  # noqa: N802 - http.server looks the name up
            self.answer(200, b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')

        def respond(self) -> None:
            self.answer(200, made.answer(self.read()))

    listener = listening(Handler, backlog=128)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    stack.callback(listener.server_close)
    stack.callback(listener.shutdown)
    stack.callback(made.gate.set)
    return made, f"http://127.0.0.1:{listener.server_address[1]}/v1"


@contextmanager
def served(folder: Path, upstream: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with two workers in its own process group; killed at the end if it still runs."""
    words = ("serve", "--port", "0", "--folder", str(folder), "--upstream", upstream, "--workers", "2")
    quick = {"NIGHTMILL_WORKER__LINES_PER_SEGMENT": "10", "NIGHTMILL_WORKER__LEASE_TTL_S": "3"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nightmill", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | quick | {"NIGHTMILL_WORKER__BEAT_S": "0.5"},
    )
    assert process.stderr is not None
    url = next(found[1] for line in process.stderr if (found := _LISTENS.search(line)))
    reader = threading.Thread(target=process.stderr.read)
    reader.start()
    try:
        yield process, url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)
        reader.join()
        process.stderr.close()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def batch_of(client: Client, folder: Path, lines: int) -> str:
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for number in range(lines):
            body = {"model": "m", "messages": [{"role": "user", "content": f"line-{number}"}]}
            row = {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(row) + "\n")
    return client.submit_file(path, endpoint="/v1/chat/completions").id


def is_quiet(client: Client, batch_id: str, upstream: Upstream) -> bool:
    """Whether every answer counts; while a batch is paused no further line is sent then."""
    counts = client.api.steering.get(batch_id)["request_counts"]
    return counts["completed"] == upstream.answered.total() == upstream.asked.total()


def custom_ids(client: Client, batch_id: str) -> list[str]:
    batch = client.api.retrieve_batch(batch_id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.output_file_id is not None
    text = client.openai.files.content(batch.output_file_id).text
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


@only_slow
def test_a_batch_is_paused_with_lines_in_flight_killed_and_resumed(tmp_path, upstream):
    made, url = upstream
    data = tmp_path / "data"
    with served(data, url) as (process, base_url), Client(base_url) as client:
        batch_id = batch_of(client, tmp_path, 300)
        until(lambda: made.in_flight > 10)
        client.api.steering.pause(batch_id)
        made.gate.set()
        # All that was in flight is answered, and the rest waits.
        until(lambda: made.in_flight == 0 and is_quiet(client, batch_id, made))
        paused_at = client.api.steering.get(batch_id)["paused_at"]
        assert client.api.retrieve_batch(batch_id).status == "in_progress"
        answered = made.answered.total()
        assert 10 < answered < 300
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)
    with served(data, url) as (_, base_url), Client(base_url) as client:
        shown = client.api.steering.get(batch_id)
        assert (shown["status"], shown["paused_at"]) == ("in_progress", paused_at)
        other = batch_of(client, tmp_path, 5)
        assert client.wait(other).status == "completed"
        assert client.api.steering.get(batch_id)["request_counts"]["completed"] == answered
        client.api.steering.resume(batch_id)
        assert client.wait(batch_id).status == "completed"
        assert custom_ids(client, batch_id) == [f"line-{number}" for number in range(300)]
    counts = Counter(made.asked)
    counts.subtract(Counter(f"line-{number}" for number in range(5)))
    assert set(counts.values()) == {1}, "a line was sent twice"


@only_slow
def test_a_limited_batch_has_no_more_lines_in_flight_over_two_worker_processes(tmp_path, upstream):
    made, url = upstream
    with served(tmp_path / "data", url) as (_, base_url), Client(base_url) as client:
        batch_id = batch_of(client, tmp_path, 300)
        until(lambda: made.in_flight > 5)
        client.api.steering.pause(batch_id)
        client.api.steering.change(batch_id, concurrency=5)
        made.gate.set()
        until(lambda: made.in_flight == 0 and is_quiet(client, batch_id, made))
        made.most = 0
        client.api.steering.resume(batch_id)
        assert client.wait(batch_id).status == "completed"
        assert custom_ids(client, batch_id) == [f"line-{number}" for number in range(300)]
    assert made.most == 5
    assert set(made.asked.values()) == {1}
