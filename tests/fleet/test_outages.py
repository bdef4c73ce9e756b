"""Postgres is killed during a batch and restarted; a worker is killed; an upstream is never overloaded."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from tests.fleet.conftest import Fleet, begin, each_once, ended, until
from tests.slow import only_fleet

LINES = 300
_ANSWER = (
    b'{"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
)


class LimitedUpstream:
    """A model server that answers at most `capacity` requests at once and refuses further ones with 429."""

    def __init__(self, capacity: int, delay_s: float) -> None:
        self.capacity = capacity
        self.delay_s = delay_s
        self.now = 0
        self.most = 0
        self.refused = 0
        self.answered = 0
        self._lock = threading.Lock()
        limited_upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                is_refused = limited_upstream.enter()
                if not is_refused:
                    time.sleep(limited_upstream.delay_s)
                limited_upstream.leave(was_refused=is_refused)
                self.send_response(429 if is_refused else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(_ANSWER)))
                self.end_headers()
                self.wfile.write(_ANSWER)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass  # a worker that was killed during a request

        self.listening = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.listening.server_port}/v1"

    def enter(self) -> bool:
        with self._lock:
            is_refused = self.now >= self.capacity
            self.refused += is_refused
            self.now += not is_refused
            self.most = max(self.most, self.now)
            return is_refused

    def leave(self, *, was_refused: bool) -> None:
        with self._lock:
            self.now -= not was_refused
            self.answered += not was_refused


@pytest.fixture
def limited_upstream() -> Iterator[Callable[[int, float], LimitedUpstream]]:
    with ExitStack() as stack:

        def start(capacity: int, delay_s: float) -> LimitedUpstream:
            made = LimitedUpstream(capacity, delay_s)
            thread = threading.Thread(target=made.listening.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            stack.callback(thread.join)
            stack.callback(made.listening.server_close)
            stack.callback(made.listening.shutdown)
            return made

        yield start


@only_fleet
def test_four_workers_use_the_whole_capacity_of_an_upstream_without_a_429(fleet: Fleet, limited_upstream):
    source = limited_upstream(16, 0.05)
    server = fleet.serve("--workers", "0")
    flags = ("--upstream", source.url, "--concurrency", "16")
    worker_hosts = [fleet.work(*flags, "--workers", "2") for _ in range(2)]
    batch = ended(server.client(), begin(server.client(), 4 * LINES).id)
    each_once(server.client(), batch, 4 * LINES)
    assert source.refused == 0
    assert source.most == 16
    assert [worker_host.end() for worker_host in worker_hosts] == [0, 0]
    assert batch.request_counts.failed == 0


def test_an_outage_of_postgres_loses_no_line_and_the_api_asks_clients_to_retry(fleet: Fleet, upstream):
    source = upstream(delay_s=0.1)
    server = fleet.serve("--workers", "0")
    worker_host = fleet.work("--upstream", source.url, "--concurrency", "8", "--workers", "2")
    client = server.client()
    made = begin(client, LINES)
    until(lambda: len(source.requests()) > 20)
    fleet.postgres.stop()
    try:
        with pytest.raises(openai.InternalServerError) as refused:
            client.batches.retrieve(made.id)
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
        time.sleep(4)  # longer than a lease: every lease has expired when Postgres is back
    finally:
        fleet.postgres.start()
    batch = ended(client, made.id)
    assert batch.status == "completed"
    each_once(client, batch, LINES)
    assert max(source.requests().values()) == 1  # finished answers were kept, and no lease was released
    for process in (server, worker_host):
        assert process.end() == 0, process.said
        assert "Traceback" not in process.said


def test_a_killed_worker_process_is_replaced_and_its_segments_continue_immediately(fleet: Fleet, upstream):
    source = upstream(delay_s=0.05)
    server = fleet.serve("--workers", "0")
    worker_host = fleet.work("--upstream", source.url, "--concurrency", "8", "--workers", "2")
    made = begin(server.client(), LINES)
    until(lambda: len(source.requests()) > 20)
    victim = worker_host.group()[1]
    os.kill(victim, signal.SIGKILL)
    batch = ended(server.client(), made.id)
    each_once(server.client(), batch, LINES)
    assert sum(source.requests().values()) <= LINES + 8 + 8
