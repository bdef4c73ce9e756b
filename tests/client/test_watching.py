"""Reading batches until they have ended: of nightmill, of another server, and of one that goes away."""

import json
from collections.abc import Callable, Sequence

import pytest

from nightmill.client.progress import Snapshot
from nightmill.client.watching import unfinished_ids, watch
from nightmill.errors import UnavailableError
from tests.client.conftest import Asked

NOTHING = (404, b"{}", {})
LINE = {"custom_id": "a", "response": {"status_code": 404, "body": {"error": "no such model"}}, "error": None}


class Display:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.frames: list[list[Snapshot]] = []

    def __call__(self, snapshots: Sequence[Snapshot]) -> None:
        self.frames.append(list(snapshots))

    @property
    def newest(self) -> list[Snapshot]:
        return self.frames[-1]


class Clock:
    """Time passes only by pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watched(client) -> Callable[..., Display]:
    def run(*batch_ids: str, **options: float) -> Display:
        display, clock = Display(), Clock()
        watch(client.openai, batch_ids, display, pause=clock.pause, now=clock, **options)
        return display

    return run


def counted(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}


def own(batch_id: str, **changes: object) -> dict:
    document = {"id": batch_id, "status": "in_progress", "created_at": 1, "deadline": 90_000}
    return document | {"request_counts": counted(9, 4, 1), "why": None, "forecast": None} | changes


def test_a_batch_of_another_server_is_read_until_it_has_ended(server, watched, batch_json):
    states = [("in_progress", 1), ("in_progress", 2), ("completed", 3)]

    def answer(asked: Asked):
        if asked.path != "/v1/batches/batch_1":
            return NOTHING
        status, done = states.pop(0)
        return 200, batch_json(status=status, request_counts=counted(3, done, 0)), {}

    server.answer = answer
    shown = watched("batch_1")
    assert [(it.status, it.done) for (it,) in shown.frames] == [
        ("in_progress", 1),
        ("in_progress", 2),
        ("completed", 3),
    ]
    assert sum(asked.path.startswith("/nightmill") for asked in server.asked) == 1


def test_what_only_nightmill_says_is_in_the_snapshot(server, watched, batch_json):
    forecast = {
        "in_flight": 8,
        "retrying": 3,
        "lines_per_s": 2.5,
        "output_tokens_per_s": 120.0,
        "ends_at": 50,
        "latest_at": 60,
    }
    why = {"code": "concurrency_limit", "sentence": "8 of 8 in flight on gpu."}
    page = {"status": "in_progress", "cursor": "c", "has_more": True}
    line = {"cursor": "c", "outcome": "failed", "line": LINE}
    statuses = ["in_progress", "completed"]

    def answer(asked: Asked):
        if "/results?" in asked.path:
            return 200, json.dumps(page | {"data": [line]}).encode(), {}
        if asked.path.startswith("/nightmill"):
            return 200, json.dumps(own("batch_1", why=why, forecast=forecast)).encode(), {}
        return (
            200,
            batch_json(status=statuses.pop(0), request_counts=counted(9, 4, 1), output_file_id=None),
            {},
        )

    server.answer = answer
    first = watched("batch_1").frames[0][0]
    assert (first.in_flight, first.retrying, first.tokens_per_s, first.lines_per_s) == (8, 3, 120.0, 2.5)
    assert (first.ends_at, first.latest_at, first.why) == (50, 60, "8 of 8 in flight on gpu.")
    assert first.failures == 'failed: 1x 404 "no such model"'


def test_several_batches_of_nightmill_take_one_request_at_a_time(server, watched, batch_json):
    pages = [["batch_1", "batch_2"], ["batch_2"], []]
    ended = set[str]()

    def answer(asked: Asked):
        if asked.path.startswith("/nightmill/v1/batches?"):
            listed = pages.pop(0)
            ended.update({"batch_1", "batch_2"} - set(listed))
            why = {"code": "upstream_held", "sentence": "It is held."}
            return 200, json.dumps({"data": [own(it, why=why) for it in listed]}).encode(), {}
        if asked.path.startswith("/v1/batches/"):
            batch_id = asked.path.split("/")[-1]
            status = "completed" if batch_id in ended else "in_progress"
            return 200, batch_json(id=batch_id, status=status, request_counts=counted(9, 9, 0)), {}
        return NOTHING

    server.answer = answer
    shown = watched("batch_1", "batch_2")
    assert [[it.status for it in frame] for frame in shown.frames] == [
        ["in_progress", "in_progress"],
        ["in_progress", "in_progress"],
        ["completed", "in_progress"],
        ["completed", "completed"],
    ]
    assert [it.limit for it in shown.frames[1]] == ["upstream held", "upstream held"]
    assert (shown.newest[0].batch_id, shown.newest[1].batch_id) == ("batch_1", "batch_2")
    read = [asked.path for asked in server.asked if asked.path.startswith("/v1/")]
    assert read == [f"/v1/batches/batch_{number}" for number in (1, 2, 1, 2)]


def test_while_the_server_is_away_the_last_counts_are_shown_with_the_time_of_its_last_answer(
    server, watched, batch_json
):
    answers = [(200, "in_progress"), (503, ""), (429, ""), (200, "completed")]

    def answer(asked: Asked):
        if not asked.path.startswith("/v1"):
            return NOTHING
        code, status = answers.pop(0)
        return (
            (code, batch_json(status=status, request_counts=counted(3, 2, 0)), {})
            if status
            else (code, b"{}", {})
        )

    server.answer = answer
    frames = [frame[0] for frame in watched("batch_1").frames]
    assert [it.away_since is not None for it in frames] == [False, True, True, False]
    assert {it.done for it in frames} == {2}
    assert frames[-1].status == "completed"


def test_a_server_that_stays_away_ends_the_watch(server, watched, batch_json):
    answers = [(200, batch_json(status="in_progress"), {})]
    server.answer = lambda asked: (
        answers.pop(0) if asked.path.startswith("/v1") and answers else (503, b"{}", {})
    )
    with pytest.raises(UnavailableError, match="did not answer for 5 s; the batches continue on it"):
        watched("batch_1", patience_s=5.0)


def test_the_unfinished_batches_of_any_server_are_found(server, client, batch_json):
    rows = [
        json.loads(batch_json(id=f"batch_{it}", status=it))
        for it in ("in_progress", "completed", "cancelling")
    ]
    page = {"object": "list", "data": rows, "has_more": False}
    server.answer = lambda asked: (
        NOTHING if "nightmill" in asked.path else (200, json.dumps(page).encode(), {})
    )
    assert unfinished_ids(client.openai) == ["batch_in_progress", "batch_cancelling"]
    server.answer = lambda _: (200, json.dumps({"data": [own("batch_7")]}).encode(), {})
    assert unfinished_ids(client.openai) == ["batch_7"]
