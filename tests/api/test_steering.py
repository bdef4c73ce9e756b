"""Pause, resume, priority, deadline and concurrency over HTTP, of one batch and of several."""

import time

import pytest

from nightmill.core.batch import Event, Status
from nightmill.ids import BatchId, ProjectId
from tests.api.test_batches import create

ROOT = "/nightmill/v1/batches"


@pytest.fixture
def batch_id(client, input_file_id) -> str:
    return create(client, input_file_id).id


def view(server, key, batch_id) -> dict:
    answer = server.send("GET", f"{ROOT}/{batch_id}", key=key)
    assert answer.status == 200
    return answer.json()


def act(server, key, status=200, **body):
    answer = server.send_json(f"{ROOT}/actions", body, key=key)
    assert answer.status == status, answer.body
    return answer.json()


def cancelled(server, project, batch_id) -> None:
    store = server.context.store
    for event in (Event.CANCEL_REQUESTED, Event.CANCELLED):
        stored = server.do(store.batches.get(ProjectId(project), BatchId(batch_id)))
        assert server.do(store.batches.move(stored.after(event, now=0), expected=stored.status))


def test_the_own_view_has_what_the_published_batch_has_no_field_for(server, client, key, batch_id):
    shown = view(server, key, batch_id)
    published = client.batches.retrieve(batch_id)
    assert (shown["object"], shown["status"]) == ("nightmill.batch", published.status)
    assert (shown["deadline"], shown["created_at"]) == (published.expires_at, published.created_at)
    assert (shown["priority"], shown["paused_at"], shown["concurrency"]) == (0, None, None)
    assert shown["options"]["on_invalid"] == "fail"
    assert shown["request_counts"]["invalid"] == 0
    assert shown["stop_reason"] is None


def test_a_paused_batch_keeps_its_published_status(server, client, key, project, batch_id):
    before = client.batches.retrieve(batch_id).to_dict()
    paused = server.send("POST", f"{ROOT}/{batch_id}/pause", key=key)
    assert paused.status == 200
    assert paused.json()["paused_at"] == pytest.approx(time.time(), abs=60)
    assert client.batches.retrieve(batch_id).to_dict() == before
    again = server.send("POST", f"{ROOT}/{batch_id}/pause", key=key)
    assert again.json()["paused_at"] == paused.json()["paused_at"]
    resumed = server.send("POST", f"{ROOT}/{batch_id}/resume", key=key)
    assert (resumed.status, resumed.json()["paused_at"]) == (200, None)
    page = server.do(server.context.store.audit.list(project_id=ProjectId(project), limit=2))
    assert [entry.action for entry in page.items] == ["batch.resumed", "batch.paused"]
    events = server.do(server.context.store.batch_events.list(BatchId(batch_id)))
    assert [event.kind for event in events] == ["created", "paused", "resumed"]
    assert events[1].actor is not None


def test_one_request_changes_all_of_its_values(server, client, key, batch_id):
    until = int(time.time()) + 7_200
    given = {"priority": 4, "deadline": until, "concurrency": 8}
    answer = server.send_json(f"{ROOT}/{batch_id}", given, key=key)
    assert answer.status == 200
    assert {name: answer.json()[name] for name in given} == given
    assert client.batches.retrieve(batch_id).expires_at == until
    removed = server.send_json(f"{ROOT}/{batch_id}", {"concurrency": None, "deadline_in_s": 60}, key=key)
    assert removed.json()["concurrency"] is None
    assert removed.json()["deadline"] == pytest.approx(time.time() + 60, abs=30)
    assert removed.json()["priority"] == 4


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, None),
        ({"deadline": 1_000}, "deadline"),
        ({"priority": 3, "deadline": 1_000}, "deadline"),
        ({"deadline": 10**18}, "deadline"),
        ({"deadline": None}, "deadline"),
        ({"deadline_in_s": 0}, "deadline_in_s"),
        ({"deadline": 2_000_000_000, "deadline_in_s": 5}, "deadline_in_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": "8"}, "concurrency"),
    ],
)
def test_a_wrong_change_is_refused_and_changes_nothing(server, key, batch_id, given, param):
    before = view(server, key, batch_id)
    answer = server.send_json(f"{ROOT}/{batch_id}", given, key=key)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert view(server, key, batch_id) == before


@pytest.mark.parametrize(
    ("given", "near"),
    [({"concurency": 8}, "concurrency"), ({"dead_line": 8}, "deadline"), ({"xyz": 1}, None)],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(server, key, batch_id, given, near):
    (name,) = given
    answer = server.send_json(f"{ROOT}/{batch_id}", given, key=key)
    hint = "" if near is None else f" Did you mean '{near}'?"
    assert answer.status == 400
    assert answer.error["message"] == f"Unknown parameter: '{name}'.{hint}"


def test_an_ended_batch_is_not_steered(server, key, project, batch_id):
    cancelled(server, project, batch_id)
    for path, body in (
        ("/pause", {}),
        ("/resume", {}),
        ("", {"priority": 1}),
        ("", {"deadline_in_s": 60}),
        ("", {"concurrency": 1}),
    ):
        answer = server.send_json(f"{ROOT}/{batch_id}{path}", body, key=key)
        assert answer.status == 409
        assert answer.error["message"].endswith("a batch with status 'cancelled'.")


def test_batches_of_other_projects_are_not_found(server, client, key, batch_id):
    other = server.new_key("another project")
    for path in ("", "/pause", "/resume"):
        answer = server.send_json(f"{ROOT}/{batch_id}{path}", {"priority": 1}, key=other)
        assert answer.status == 404
    assert server.send("GET", ROOT, key=other).json()["data"] == []
    done = act(server, other, action="pause", ids=[batch_id, "batch_none", "no id"])
    assert (done["changed"], done["not_found"]) == (0, 3)
    assert act(server, other, action="pause", filter={"status": "validating"})["matched"] == 0
    assert view(server, key, batch_id)["paused_at"] is None


def test_batches_are_listed_by_every_filter(server, client, key, project, input_file_id):
    quoted = {"team": 'a "quoted" \\ näme', "n": "1"}
    first = create(client, input_file_id, metadata=quoted).id
    second = create(client, input_file_id, metadata={"team": "A", "n": "1"}).id
    third = create(client, input_file_id, metadata={"other": '"n": "1"'}).id
    cancelled(server, project, third)
    server.send("POST", f"{ROOT}/{second}/pause", key=key)

    def listed(query: str) -> list[str]:
        answer = server.send("GET", f"{ROOT}?{query}", key=key)
        assert answer.status == 200, answer.body
        return [batch["id"] for batch in answer.json()["data"]]

    assert listed("") == [third, second, first]
    assert listed("metadata=n%3D1") == [second, first]
    assert listed("metadata=n%3D1&metadata=team%3DA") == [second]
    assert listed("metadata=team%3Da") == []
    assert listed("metadata=team%3Da%20%22quoted%22%20%5C%20n%C3%A4me") == [first]
    assert listed("status=cancelled") == [third]
    assert listed("status=cancelled&status=validating") == [third, second, first]
    assert listed("paused=true") == [second]
    assert listed("older_than_s=3600") == []
    assert listed("older_than_s=0") == [third, second, first]
    assert listed("endpoint=/v1/embeddings") == []
    assert listed("model=m") == []
    assert listed(f"limit=1&after={third}") == [second]
    assert listed(f"id_prefix={second[:16]}") == [second]
    assert listed("id_prefix=batch%25") == []
    assert server.send("GET", f"{ROOT}?status=runing", key=key).status == 400
    assert server.send("GET", f"{ROOT}?metadata=n", key=key).status == 400
    assert server.send("GET", f"{ROOT}?after=batch_none", key=key).status == 404


def test_an_action_on_a_filter_is_tried_first_and_then_done_page_by_page(server, client, key, input_file_id):
    made = [create(client, input_file_id, metadata={"night": "1"}).id for _ in range(3)]
    other = create(client, input_file_id).id
    body = {"action": "pause", "filter": {"metadata": {"night": "1"}}}
    trial = act(server, key, dry_run=True, **body)
    assert (trial["matched"], trial["changed"], trial["dry_run"]) == (3, 3, True)
    assert {view(server, key, batch_id)["paused_at"] for batch_id in made} == {None}
    first = act(server, key, limit=2, **body)
    assert (first["matched"], first["changed"], first["has_more"]) == (3, 2, True)
    second = act(server, key, limit=2, after=first["last_id"], **body)
    assert (second["changed"], second["has_more"]) == (1, False)
    assert [row["id"] for row in (*first["data"], *second["data"])] == made[::-1]
    assert all(view(server, key, batch_id)["paused_at"] for batch_id in made)
    assert view(server, key, other)["paused_at"] is None
    again = act(server, key, **body)
    assert (again["changed"], again["unchanged"]) == (0, 3)


def test_every_action_works_on_ids_and_says_what_became_of_each(server, client, key, project, input_file_id):
    one, two, gone = (create(client, input_file_id).id for _ in range(3))
    cancelled(server, project, gone)
    ids = [one, two, gone, one]
    for action, values, field, value in (
        ("prioritize", {"priority": 2}, "priority", 2),
        ("limit", {"concurrency": 5}, "concurrency", 5),
        ("limit", {"concurrency": None}, "concurrency", None),
        ("deadline", {"deadline": 2_000_000_000}, "deadline", 2_000_000_000),
    ):
        for dry_run in (True, False):
            done = act(server, key, action=action, ids=ids, dry_run=dry_run, **values)
            assert [row["result"] for row in done["data"]] == ["changed", "changed", "refused"]
        assert done["data"][0]["batch"][field] == value == view(server, key, two)[field]
        assert "status 'cancelled'" in done["data"][2]["message"]
    assert act(server, key, action="resume", ids=[one])["unchanged"] == 1
    trial = act(server, key, action="cancel", ids=ids, dry_run=True)
    assert (trial["changed"], trial["unchanged"]) == (2, 1)
    assert client.batches.retrieve(one).status == "validating"
    done = act(server, key, action="cancel", ids=ids)
    assert (done["changed"], done["unchanged"]) == (2, 1)
    assert client.batches.retrieve(one).status == "cancelling"
    stored = server.do(server.context.store.batches.get(ProjectId(project), BatchId(two)))
    assert stored.status is Status.CANCELLING


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "pause"},
        {"action": "pause", "ids": []},
        {"action": "pause", "ids": ["batch_1"], "filter": {"status": "validating"}},
        {"action": "pause", "filter": {}},
        {"action": "pause", "filter": {"metadata": None}},
        {"action": "pause", "filter": {"metadata": {}, "status": []}},
        {"action": "pause", "filter": {"status": "paused"}},
        {"action": "pause", "filter": {"stauts": "validating"}},
        {"action": "pause", "ids": ["batch_1"], "priority": 1},
        {"action": "stop", "ids": ["batch_1"]},
        {"action": "prioritize", "ids": ["batch_1"]},
        {"action": "limit", "ids": ["batch_1"]},
        {"action": "deadline", "ids": ["batch_1"], "deadline": 1, "deadline_in_s": 1},
        {"action": "pause", "ids": ["batch_1"], "dry_run": 1},
    ],
)
def test_a_wrong_action_is_refused(server, key, batch_id, body):
    answer = server.send_json(f"{ROOT}/actions", body, key=key)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert view(server, key, batch_id)["paused_at"] is None


def test_the_nearest_name_is_found_inside_of_a_filter(server, key):
    body = {"action": "pause", "filter": {"stauts": "validating"}}
    answer = server.send_json(f"{ROOT}/actions", body, key=key)
    assert answer.error["message"] == "Unknown parameter: 'filter.stauts'. Did you mean 'status'?"
