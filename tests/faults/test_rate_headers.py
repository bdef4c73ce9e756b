"""A provider with a limit of its own that refills steadily, over real sockets."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.served import assert_each_line_once, request_lines, serving
from tests.slow import only_slow
from tests.threaded_server import AnsweringHandler, listening

LINES = 24
USAGE = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
ANSWER = json.dumps({"id": "x", "choices": [], "usage": USAGE}).encode()


class Provider:
    """Takes `PER_MINUTE` requests in a minute and refuses more, with the headers of OpenAI.

    Args:
        level: requests that it takes at first without a wait.
    """

    PER_MINUTE = 60
    ANSWER_S = 0.3

    def __init__(self, *, level: float) -> None:
        self.answered = self.refused = 0
        self.first_at, self.last_at = 0.0, 0.0
        self._level, self._since = level, time.monotonic()
        self._lock = threading.Lock()
        provider = self

        class Handler(AnsweringHandler):
            def respond(self) -> None:
                self.read()
                is_taken, headers = provider.take()
                if is_taken:
                    time.sleep(provider.ANSWER_S)
                self.answer(200 if is_taken else 429, ANSWER, headers)

        self.listening = listening(Handler, backlog=64)
        self.url = f"http://127.0.0.1:{self.listening.server_port}/v1"

    def take(self) -> tuple[bool, dict[str, str]]:
        """Whether a request is taken, and the headers of its answer."""
        with self._lock:
            now, per_s = time.monotonic(), self.PER_MINUTE / 60
            self._level = min(self.PER_MINUTE, self._level + (now - self._since) * per_s)
            self._since = now
            is_taken = self._level >= 1
            if is_taken:
                self._level -= 1
                self.answered += 1
                self.first_at, self.last_at = self.first_at or now, now
            else:
                self.refused += 1
            reset_ms = round((self.PER_MINUTE - self._level) / per_s * 1_000)
            return is_taken, {
                "x-ratelimit-limit-requests": str(self.PER_MINUTE),
                "x-ratelimit-remaining-requests": str(int(self._level)),
                "x-ratelimit-reset-requests": f"{reset_ms // 1_000}.{reset_ms % 1_000:03}s",
            }


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(level=12.0)
    thread = threading.Thread(target=made.listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.listening.shutdown()
    made.listening.server_close()
    thread.join()


@only_slow
@pytest.mark.timeout(120)
def test_a_provider_that_refills_a_request_a_second_is_used_fully_and_refuses_few(
    tmp_path: Path, provider: Provider
):
    with serving(tmp_path, flags=("--upstream", provider.url), upstream__concurrency=8) as served:
        batch = served.until_ended(served.batch(request_lines(LINES)), timeout_s=90)
        assert_each_line_once(served.rows(batch), LINES)
        assert batch["request_counts"]["completed"] == LINES
    assert provider.answered == LINES
    assert provider.refused <= 8
    # 12 lines at once and one in a second afterwards; the reset in the headers is up to a minute away.
    assert provider.last_at - provider.first_at < 2 * (LINES - 12)
