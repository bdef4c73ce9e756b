"""Two model servers behind a real `nightmill serve`: one dies, is changed, or refuses the key."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Rogue, answer, rogue_in_a_thread, said
from tests.faults.served import Served, assert_each_line_once, request_lines, serving, wait_until
from tests.slow import only_slow

LINES = 300
SLOTS = 4


def slowly(custom_id: str) -> tuple[Any, ...]:
    return (0.02, answer(said(custom_id)))


@contextlib.contextmanager
def two_servers() -> Iterator[tuple[Rogue, Rogue]]:
    with rogue_in_a_thread() as first, rogue_in_a_thread() as second:
        first.always = second.always = slowly
        yield first, second


def settings(first: Rogue, second: Rogue, *, transport: str = "lean") -> dict[str, Any]:
    """Both serve the model `m`; the numbers in flight are fixed."""
    found: dict[str, Any] = {"worker__beat_s": 0.1, "worker__lines_per_segment": 20}
    for name, rogue in (("first", first), ("second", second)):
        found |= {
            f"upstreams__{name}__url": rogue.url,
            f"upstreams__{name}__models": "m",
            f"upstreams__{name}__concurrency": SLOTS,
            f"upstreams__{name}__transport": transport,
        }
    return found


def assert_all_answered(served: Served, batch_id: str, *, lines: int = LINES) -> None:
    ended = served.until_ended(batch_id)
    assert ended["request_counts"] == {"total": lines, "completed": lines, "failed": 0}
    rows = served.rows(ended)
    assert_each_line_once(rows, lines)
    for row in rows:
        number = row["custom_id"].removeprefix("line-")
        assert row["response"]["body"]["choices"][0]["message"]["content"] == f"marker:{number}. "


def repeats(first: Rogue, second: Rogue) -> int:
    asked: Counter[str] = first.asked + second.asked
    return sum(count - 1 for content, count in asked.items() if content != "Hi")


def change(served: Served, method: str, path: str, **wanted: Any) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps(wanted).encode() if wanted else None
    status, _, answered = served.send(method, f"/nightmill/v1/upstreams{path}", body, headers)
    assert status < 300, answered


@pytest.mark.parametrize("transport", ["lean", "aiohttp"])
def test_a_model_server_that_dies_costs_no_line_and_is_used_when_it_is_back(tmp_path: Path, transport: str):
    with two_servers() as (first, second):
        with serving(tmp_path, flags=(), **settings(first, second, transport=transport)) as served:
            batch_id = served.batch(request_lines(LINES))
            wait_until(lambda: first.asked.total() >= 20)
            with first.down():
                before = second.asked.total()
                wait_until(lambda: second.asked.total() >= before + 40)
            asked = first.asked.total()
            wait_until(lambda: first.asked.total() >= asked + 10)
            assert_all_answered(served, batch_id)
        assert repeats(first, second) <= SLOTS


def test_a_killed_nightmill_sends_again_at_most_what_was_in_flight_or_not_durable(tmp_path: Path):
    with two_servers() as (first, second), contextlib.ExitStack() as stack:
        wanted = settings(first, second)
        served = stack.enter_context(serving(tmp_path, flags=(), **wanted))
        batch_id = served.batch(request_lines(LINES))
        wait_until(lambda: first.asked.total() + second.asked.total() >= 100)
        served.kill()
        served = stack.enter_context(serving(tmp_path, flags=(), **wanted))
        assert_all_answered(served, batch_id)
        assert first.asked
        assert second.asked
        # In flight twice, since the workers end a moment later, and the answers of a commit.
        assert repeats(first, second) <= 100


@only_slow
def test_upstreams_are_paused_drained_removed_and_added_in_the_middle_of_a_batch(tmp_path: Path):
    lines = 1_000
    with two_servers() as (first, second):
        first.always = second.always = lambda custom_id: (0.1, answer(said(custom_id)))
        with serving(tmp_path, flags=(), **settings(first, second)) as served:
            batch_id = served.batch(request_lines(lines))
            wait_until(lambda: first.asked.total() >= 10)
            change(served, "POST", "/first/pause")
            wait_until(lambda: first.in_flight == 0)
            change(served, "POST", "/first/resume")
            asked = first.asked.total()
            wait_until(lambda: first.asked.total() > asked)
            change(served, "POST", "/second/drain")
            change(served, "DELETE", "/second")
            wait_until(lambda: second.in_flight == 0)
            change(served, "POST", "", name="third", url=second.url, models=["m"], concurrency=SLOTS)
            asked = second.asked.total()
            wait_until(lambda: second.asked.total() > asked)
            assert_all_answered(served, batch_id, lines=lines)
        assert repeats(first, second) == 0


def test_a_key_that_one_of_two_refuses_costs_no_line_and_is_said(tmp_path: Path):
    with two_servers() as (first, second):
        first.always = lambda _: (answer(b'{"error": {"message": "no"}}', status="401 Unauthorized"),)
        with serving(tmp_path, flags=(), **settings(first, second)) as served:
            batch_id = served.batch(request_lines(LINES))
            served.until_said("it refuses our key (401)")
            assert_all_answered(served, batch_id)
        assert max(second.asked.values()) == 1
