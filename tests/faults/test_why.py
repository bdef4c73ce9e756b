"""A real `nightmill serve` says what limits a batch while an upstream is paused, and the history has it."""

from pathlib import Path
from typing import Any

from tests.faults.conftest import answer, rogue_in_a_thread, said
from tests.faults.served import Served, request_lines, serving, wait_until
from tests.slow import only_slow

LINES = 400


def slowly(custom_id: str) -> tuple[Any, ...]:
    return (0.1, answer(said(custom_id)))


def why(served: Served, batch_id: str) -> dict[str, Any]:
    status, _, document = served.send("GET", f"/nightmill/v1/batches/{batch_id}")
    assert status == 200, document
    return document["why"] or {"code": None}


def limits(served: Served, batch_id: str) -> list[str]:
    _, _, page = served.send("GET", f"/nightmill/v1/batches/{batch_id}/events")
    return [event["detail"]["code"] for event in page["data"] if event["kind"] == "limited"]


def act(served: Served, action: str) -> None:
    status, _, document = served.send("POST", f"/nightmill/v1/upstreams/gpu/{action}")
    assert status == 200, document


@only_slow
def test_an_upstream_that_is_paused_is_named_until_it_is_resumed(tmp_path: Path):
    with rogue_in_a_thread() as rogue:
        rogue.always = slowly
        settings = {
            "upstreams__gpu__url": rogue.url,
            "upstreams__gpu__models": "m",
            "upstreams__gpu__concurrency": 4,
        }
        with serving(tmp_path, flags=(), **settings) as served:
            batch_id = served.batch(request_lines(LINES))
            wait_until(lambda: why(served, batch_id)["code"] == "concurrency_limit")
            wait_until(lambda: limits(served, batch_id)[-1:] == ["concurrency_limit"])
            act(served, "pause")
            wait_until(lambda: why(served, batch_id)["code"] == "upstream_paused")
            paused = why(served, batch_id)
            assert paused["upstream"] == "gpu"
            assert "resume it with: nightmill upstreams resume gpu" in paused["sentence"]
            wait_until(lambda: limits(served, batch_id)[-1:] == ["upstream_paused"])
            served.until_logged("Waits for upstream gpu: paused by an operator")
            act(served, "resume")
            wait_until(lambda: why(served, batch_id)["code"] != "upstream_paused")
            ended = served.until_ended(batch_id, timeout_s=120)
            assert ended["request_counts"]["completed"] == LINES
            assert why(served, batch_id)["code"] is None
            known = [code for code in limits(served, batch_id) if code != "starting"]
            assert known[:2] == ["concurrency_limit", "upstream_paused"]
