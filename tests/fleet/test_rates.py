"""Limits on requests and tokens per minute hold over the whole fleet and are used fully."""

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fleet.conftest import begin, each_once, ended
from tests.threaded_server import AnsweringHandler, listening

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="a minute: make test-fleet")
WORKERS = 4
MINUTE_S = 60.0


class Counting:
    """A model server that records the time of each request. Each answer uses `TOKENS` tokens."""

    TOKENS = 50

    def __init__(self) -> None:
        self.asked: list[float] = []
        counting = self
        usage = {"prompt_tokens": self.TOKENS - 10, "completion_tokens": 10, "total_tokens": self.TOKENS}
        answer = json.dumps({"id": "x", "choices": [], "usage": usage}).encode()

        class Handler(AnsweringHandler):
            def respond(self) -> None:
                counting.asked.append(time.monotonic())
                self.read()
                self.answer(200, answer)

        self.listening = listening(Handler, backlog=256)
        self.url = f"http://127.0.0.1:{self.listening.server_port}/v1"

    def most_within(self, seconds: float) -> int:
        """The highest number of requests in any period of `seconds`."""
        asked, most, first = sorted(self.asked), 0, 0
        for last, moment in enumerate(asked):
            while asked[first] <= moment - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


@pytest.fixture
def counting() -> Iterator[Counting]:
    made = Counting()
    thread = threading.Thread(target=made.listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.listening.shutdown()
    made.listening.server_close()
    thread.join()


def run(fleet, counting: Counting, lines: int) -> None:
    server = fleet.serve("--workers", "0")
    flags = ("--upstream", counting.url, "--concurrency", "16", "--workers", str(WORKERS // 2))
    worker_hosts = [fleet.work(*flags) for _ in range(2)]
    batch = ended(server.client(), begin(server.client(), lines).id, timeout_s=150)
    each_once(server.client(), batch, lines)
    assert [process.end() for process in (server, *worker_hosts)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_limit_of_requests_per_minute_holds_over_four_workers_and_is_used(fleet, counting):
    limit = 600
    fleet.environment["NIGHTMILL_UPSTREAM__REQUESTS_PER_MINUTE"] = str(limit)
    run(fleet, counting, lines=750)
    assert counting.most_within(MINUTE_S) <= limit + WORKERS
    assert counting.most_within(MINUTE_S) >= 0.8 * limit
    assert (
        counting.most_within(1.0) <= 2 * limit / MINUTE_S + WORKERS
    )  # requests are not sent in bursts either


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_limit_of_tokens_per_minute_holds_over_four_workers_and_is_used(fleet, counting):
    lines_per_minute = 600
    fleet.environment["NIGHTMILL_UPSTREAM__TOKENS_PER_MINUTE"] = str(lines_per_minute * Counting.TOKENS)
    run(fleet, counting, lines=750)
    # The tokens of a first attempt are not known before its answer, so each slot may exceed the limit once.
    assert counting.most_within(MINUTE_S) <= lines_per_minute + 16 + WORKERS
    assert counting.most_within(MINUTE_S) >= 0.8 * lines_per_minute
