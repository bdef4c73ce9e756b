"""The output lines of a batch, as pages and as a stream, while it runs and after it has ended."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nightmill.api import result_stream
from nightmill.core.batch import Event
from nightmill.core.result_cursor import ResultCursor
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId
from tests.api.conftest import Server, serving
from tests.api.followed import SETTINGS, FollowedBatch, ids, next_document


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("results"), settings=SETTINGS) as server:
        yield server


def names(*numbers):
    return [f"line-{number}" for number in numbers]


def output_lines(server, batch):
    """Every line of both files, as bytes."""
    made = server.client().batches.retrieve(batch.id)
    files = [file_id for file_id in (made.output_file_id, made.error_file_id) if file_id]
    return [line for file_id in files for line in server.client().files.content(file_id).content.splitlines()]


def test_a_page_has_the_lines_answered_so_far_and_the_next_one_those_answered_since(own):
    batch = FollowedBatch.of(own, 6)
    empty = batch.page().json()
    assert (empty["data"], empty["has_more"], empty["status"]) == ([], True, "in_progress")
    holder = batch.lease()
    batch.answer(holder, 2, failed=[0])
    page = batch.page(after=empty["cursor"]).json()
    assert ids(page["data"]) == names(2, 0)
    assert [entry["outcome"] for entry in page["data"]] == ["completed", "failed"]
    assert page["cursor"] == page["data"][-1]["cursor"]
    assert batch.page(after=page["cursor"]).json()["data"] == []
    batch.answer(holder, 1)
    batch.complete(holder)
    later = batch.page(after=page["cursor"]).json()
    assert ids(later["data"]) == names(1)
    assert later["has_more"]


def test_the_cursor_of_any_line_goes_on_behind_it_while_the_batch_runs_and_after_its_end(own):
    batch = FollowedBatch.of(own, 9)
    first = batch.lease()
    second = batch.lease()
    batch.answer(second, 5, 3)
    batch.answer(first, 1, failed=[0])
    live = batch.page().json()["data"]
    assert sorted(ids(live)) == names(0, 1, 3, 5)
    for number, entry in enumerate(live):
        assert ids(batch.page(after=entry["cursor"]).json()["data"]) == ids(live[number + 1 :])
    batch.answer(first, 2)
    batch.complete(first)
    batch.answer(second, 4)
    batch.complete(second)
    batch.answer_all(3, failed=[7])
    batch.finalize()
    for number, entry in enumerate(live):
        rest = batch.pages(after=entry["cursor"], limit=2)
        assert sorted(ids(live[: number + 1]) + ids(rest)) == names(*range(9))
    whole = batch.pages()
    assert ids(whole) == names(1, 2, 3, 4, 5, 6, 8, 0, 7)
    for number, entry in enumerate(whole):
        assert ids(batch.pages(after=entry["cursor"])) == ids(whole[number + 1 :])


def test_a_line_is_given_with_the_bytes_of_its_file(own):
    batch = FollowedBatch.of(own, 6)
    batch.answer_all(6, failed=[4])
    live = batch.page().body
    batch.finalize()
    lines = output_lines(own, batch)
    assert len(lines) == 6
    ended = batch.page().body
    for line in lines:
        assert b'"line": ' + line + b"}" in live
        assert b'"line": ' + line + b"}" in ended


def test_an_ended_batch_has_no_more_lines_at_its_last_page(own):
    batch = FollowedBatch.of(own, 3)
    batch.answer_all(3)
    batch.finalize()
    page = batch.page(limit=2).json()
    assert (len(page["data"]), page["has_more"], page["status"]) == (2, True, "completed")
    last = batch.page(after=page["cursor"]).json()
    assert (len(last["data"]), last["has_more"]) == (1, False)
    end = batch.page(after=last["cursor"]).json()
    assert (end["data"], end["has_more"]) == ([], False)


def test_lines_that_were_never_answered_are_given_with_the_error_file(own):
    batch = FollowedBatch.of(own, 6)
    holder = batch.lease()
    batch.answer(holder, 1)
    live = batch.page().json()
    assert ids(live["data"]) == names(1)
    batch.move(Event.CANCEL_REQUESTED)
    own.do(own.context.store.leases.release_all())
    batch.finalize()
    rest = batch.pages(after=live["cursor"])
    assert ids(rest) == names(0, 2, 3, 4, 5)
    assert {entry["line"]["error"]["code"] for entry in rest} == {"batch_cancelled"}


def test_a_batch_that_failed_validation_has_no_lines_and_says_so(own):
    batch = FollowedBatch.of(own, 0, content=b'{"custom_id": 1}\n')
    page = batch.page().json()
    assert (page["data"], page["has_more"], page["status"]) == ([], False, "failed")
    assert "failed validation" in page["message"]
    with batch.following() as response:
        assert next_document(response)["end"] == "failed"
        assert next_document(response) is None


def test_filters_choose_lines_by_outcome_code_and_custom_id(own):
    batch = FollowedBatch.of(own, 6)
    holder = batch.lease()
    batch.answer(holder, 0, 1, failed=[2])
    batch.complete(holder)

    def check():
        assert ids(batch.pages(outcome="failed")) == names(2)
        assert ids(batch.pages(outcome="completed", custom_id=["line-1", "line-2"])) == names(1)
        assert ids(batch.pages(code="too_long")) == names(2)
        assert ids(batch.pages(code=["x", "400"])) == names(2)
        assert ids(batch.pages(code="x")) == []
        assert ids(batch.pages(custom_id="line-9")) == []

    check()
    batch.answer_all(3)
    batch.finalize()
    check()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"after": "abc"}, "after"),
        ({"after": "ä"}, "after"),
        ({"limit": 0}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"outcome": "ok"}, "outcome"),
        ({"format": "xml"}, "format"),
        ({"follow": "perhaps"}, "follow"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(own, query, param):
    batch = FollowedBatch.of(own, 1)
    answer = batch.page(**query)
    assert (answer.status, answer.error["param"]) == (400, param)
    if "after" in query:
        answer = batch.page(**query, follow=1)
        assert (answer.status, answer.error["code"]) == (400, "invalid_cursor")


def test_a_cursor_of_another_batch_is_refused(own):
    batch = FollowedBatch.of(own, 1)
    for query in ({}, {"follow": 1}):
        answer = batch.page(after=ResultCursor(BatchId("batch_other")).text(), **query)
        assert (answer.status, answer.error["code"]) == (400, "cursor_of_another_batch")


def test_a_foreign_batch_is_not_found(serve):
    server = serve(settings=SETTINGS)
    batch = FollowedBatch.of(server, 1)
    key = server.new_key("another")
    for query in ({}, {"follow": 1}):
        answer = server.send("GET", batch.path(**query), key=key)
        assert answer.status == 404
        assert str(batch.id) in answer.error["message"]


def test_a_deleted_output_file_is_reported_and_lines_that_are_left_are_given(own):
    batch = FollowedBatch.of(own, 3)
    batch.answer_all(3, failed=[0])
    batch.finalize()
    made = own.client().batches.retrieve(batch.id)
    own.client().files.delete(made.output_file_id)
    answer = batch.page()
    assert (answer.status, answer.error["code"]) == (404, "results_deleted")
    assert answer.error["message"].startswith(f"The output file of '{batch.id}' was deleted")
    assert ids(batch.pages(outcome="failed")) == names(0)
    with batch.following() as response:
        assert next_document(response)["error"]["code"] == "results_deleted"
        assert next_document(response) is None


def test_a_stream_gives_each_line_as_it_is_answered_and_ends_with_the_batch(own):
    batch = FollowedBatch.of(own, 6)
    with batch.following() as response:
        assert response.status == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["cache-control"] == "no-store"
        first = batch.lease()
        batch.answer(first, 1)
        assert next_document(response)["line"]["custom_id"] == "line-1"
        batch.answer(first, 0, failed=[2])
        rest = [next_document(response) for _ in range(2)]
        assert sorted(ids(rest)) == names(0, 2)
        batch.complete(first)
        batch.answer_all(3)
        batch.finalize()
        documents = list(iter(lambda: next_document(response), None))
    assert sorted(ids(documents[:-1])) == names(3, 4, 5)
    assert documents[-1] == {"cursor": documents[-1]["cursor"], "end": "completed"}


def test_a_stream_goes_on_behind_a_cursor_or_the_last_event_id(own):
    batch = FollowedBatch.of(own, 3)
    batch.answer_all(3)
    lines = batch.page().json()["data"]
    batch.finalize()
    old, new = lines[0]["cursor"], lines[1]["cursor"]
    with batch.following(after=old) as response:
        assert ids([next_document(response), next_document(response)]) == ids(lines[1:])
    with batch.following(after=old, headers={"Last-Event-ID": new}) as response:
        assert ids([next_document(response)]) == ids(lines[2:])
        assert next_document(response)["end"] == "completed"


@pytest.mark.parametrize("asked", [{"headers": {"Accept": "text/event-stream"}}, {"format": "sse"}])
def test_server_sent_events_have_the_same_documents(own, asked):
    batch = FollowedBatch.of(own, 2)
    batch.answer_all(2)
    batch.finalize()
    with batch.following(**asked) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [event.splitlines() for event in response.read().decode().split("\n\n") if event]
    *lines, end = events
    for event, line in zip(lines, batch.page().json()["data"], strict=True):
        assert event[0] == f"id: {line['cursor']}"
        assert json.loads(event[1].removeprefix("data: ")) == line
    assert end[1] == "event: end"
    assert json.loads(end[2].removeprefix("data: "))["end"] == "completed"


def test_a_quiet_stream_sends_something_now_and_then(own, monkeypatch):
    batch = FollowedBatch.of(own, 1)
    monkeypatch.setattr(result_stream, "BEAT_S", 0.0)
    monkeypatch.setattr(result_stream, "LOOK_S", 0.001)
    with batch.following() as response:
        assert [response.readline() for _ in range(3)] == [b"\n"] * 3
    with batch.following(format="sse") as response:
        assert [response.readline() for _ in range(4)] == [b":\n", b"\n"] * 2


def test_a_stream_ends_without_its_last_document_when_the_server_stops(serve):
    stopping = threading.Event()
    server = serve(settings=SETTINGS, change=lambda context: replace(context, is_stopping=stopping.is_set))
    batch = FollowedBatch.of(server, 3)
    with batch.following() as response:
        batch.answer(batch.lease(), 0)
        assert next_document(response)["line"]["custom_id"] == "line-0"
        stopping.set()
        assert next_document(response) is None


def test_a_stream_goes_on_when_the_store_could_not_be_reached_for_a_while(serve):
    server = serve(settings=SETTINGS)
    batch = FollowedBatch.of(server, 3)
    batches, failures = server.context.store.batches, []
    get = batches.get

    async def failing(*args):
        if len(failures) < 3:
            failures.append(args)
            raise UnavailableError("the store is away")
        return await get(*args)

    with batch.following() as response:
        response.readline()
        batches.get = failing
        batch.answer(batch.lease(), 0)
        assert next_document(response)["line"]["custom_id"] == "line-0"
    assert len(failures) == 3


def test_a_stream_ends_with_an_error_when_the_store_stays_away(serve, monkeypatch):
    monkeypatch.setattr(result_stream, "PATIENCE_S", -1.0)
    server = serve(settings=SETTINGS)
    batch = FollowedBatch.of(server, 3)

    async def failing(*_):
        raise UnavailableError("the store is away")

    with batch.following() as response:
        response.readline()
        server.context.store.batches.get = failing
        error = next_document(response)["error"]
        assert (error["message"], error["type"]) == ("the store is away", "server_error")
        assert next_document(response) is None


def test_an_unchanged_batch_costs_one_row_a_look(serve):
    server = serve(settings=SETTINGS)
    batch = FollowedBatch.of(server, 3)
    batch.answer(batch.lease(), 0)
    looks = []
    store = server.context.store.answered_segments
    listed = store.list

    def counting(*args, **kwargs):
        looks.append(args)
        return listed(*args, **kwargs)

    store.list = counting
    asked = []
    got = server.context.store.batches.get

    def counting_batches(*args):
        asked.append(args)
        return got(*args)

    with batch.following() as response:
        assert next_document(response) is not None
        server.context.store.batches.get = counting_batches
        while len(asked) < 4:
            pass
    assert len(looks) == 2  # the segments, and that there are no further ones


def test_more_followers_than_allowed_are_refused_until_one_has_left(serve):
    server = serve(settings=SETTINGS | {"api": {"max_followers": 1}})
    batch = FollowedBatch.of(server, 1)
    with batch.following() as response:
        response.readline()
        refused = batch.page(follow=1)
        assert refused.status == 429
        assert refused.headers["retry-after"] == "5"
        assert batch.page().status == 200
    batch.answer_all(1)
    batch.finalize()
    deadline = time.monotonic() + 20
    while (answer := batch.page(follow=1)).status == 429:
        assert time.monotonic() < deadline
    assert answer.status == 200
