"""Stored actions on many batches over HTTP, with a runner whose turns the tests make."""

import time

import pytest

from nightmill.api.action_runner import ActionRunner
from nightmill.core.batch import Status
from nightmill.ids import BatchId, ProjectId, WorkerId
from tests.api.test_batches import create
from tests.api.test_steering import act, cancelled, view

ACTIONS = "/nightmill/v1/batches/actions"


@pytest.fixture
def batch_ids(client, input_file_id) -> list[str]:
    return [create(client, input_file_id).id for _ in range(3)]


@pytest.fixture
def turn(server):
    """Makes turns of the runner until it has nothing to do."""
    runner = ActionRunner(server.context, runner_id=WorkerId("runner"))

    def turn() -> None:
        while not server.do(runner.turn()):
            pass

    return turn


def read(server, key, action_id):
    answer = server.send("GET", f"{ACTIONS}/{action_id}", key=key)
    assert answer.status == 200, answer.body
    return answer.json()


def undo(server, key, action_id, status=200):
    answer = server.send("DELETE", f"{ACTIONS}/{action_id}", key=key)
    assert answer.status == status, answer.body
    return answer.json()


def test_a_pause_without_delay_is_done_in_the_answer_and_undone_by_a_delete(server, key, batch_ids):
    done = act(server, key, action="pause", ids=batch_ids, delay_s=0)
    assert (done["object"], done["state"], done["changed"]) == ("nightmill.bulk_action", "done", 3)
    assert (done["undo"], done["undo_left_s"] > 500) == ("undo", True)
    assert all(view(server, key, batch_id)["paused_at"] for batch_id in batch_ids)
    undone = undo(server, key, done["id"])
    assert (undone["state"], undone["undone"], undone["undo"]) == ("undone", 3, None)
    assert not any(view(server, key, batch_id)["paused_at"] for batch_id in batch_ids)
    assert undo(server, key, done["id"]) == undone


def test_a_delayed_cancellation_waits_and_can_be_called_off(server, client, key, batch_ids, turn):
    ordered = act(server, key, action="cancel", filter={"status": "validating"}, delay_s=600)
    assert (ordered["state"], ordered["matched"], ordered["undo"]) == ("pending", 3, "call_off")
    assert 590 < ordered["starts_in_s"] <= 600
    turn()
    assert client.batches.retrieve(batch_ids[0]).status == "validating"
    assert undo(server, key, ordered["id"])["state"] == "cancelled"
    late = server.send("POST", f"{ACTIONS}/{ordered['id']}/start", key=key)
    assert (late.status, late.json()["state"]) == (200, "cancelled")
    turn()
    assert client.batches.retrieve(batch_ids[0]).status == "validating"


def test_an_order_outlives_the_process_and_another_does_it(server, client, key, batch_ids, turn):
    ordered = act(server, key, action="cancel", filter={"status": "validating"}, delay_s=0.2)
    while read(server, key, ordered["id"])["starts_in_s"]:
        time.sleep(0.05)
    turn()
    assert read(server, key, ordered["id"])["state"] == "done"
    assert {client.batches.retrieve(batch_id).status for batch_id in batch_ids} == {"cancelling"}
    answer = server.send("DELETE", f"{ACTIONS}/{ordered['id']}", key=key)
    assert answer.status == 409
    assert answer.error["message"].endswith("has ended and can't be undone: what it did stays.")


def test_a_waiting_action_can_be_started(server, client, key, batch_ids):
    ordered = act(server, key, action="cancel", ids=batch_ids[:1], delay_s=600)
    started = server.send("POST", f"{ACTIONS}/{ordered['id']}/start", key=key)
    assert started.json()["state"] == "done"
    assert client.batches.retrieve(batch_ids[0]).status == "cancelling"


def test_a_preview_says_what_is_meant_and_what_is_left_alone_and_why(server, key, project, batch_ids):
    cancelled(server, project, batch_ids[0])
    shown = act(
        server, key, action="prioritize", priority=3, ids=[*batch_ids, "batch_none"], delay_s=0, dry_run=True
    )
    assert (shown["matched"], shown["total"], shown["not_found"]) == (3, 2, 1)
    assert shown["left_alone"] == [{"status": "cancelled", "paused": False, "count": 1}]
    assert [batch["id"] for batch in shown["data"]] == batch_ids[:0:-1]
    assert server.send("GET", ACTIONS, key=key).json()["data"] == []
    done = act(server, key, action="prioritize", priority=3, ids=batch_ids, delay_s=0)
    assert (done["total"], done["values"]) == (2, {"priority": 3})


def test_a_deadline_in_seconds_is_fixed_when_it_is_ordered(server, key, batch_ids):
    done = act(server, key, action="deadline", deadline_in_s=5_000, ids=batch_ids, delay_s=0)
    assert done["values"]["deadline"] == pytest.approx(time.time() + 5_000, abs=60)
    assert view(server, key, batch_ids[0])["deadline"] == done["values"]["deadline"]
    undo(server, key, done["id"])
    assert view(server, key, batch_ids[0])["deadline"] > done["values"]["deadline"]


def test_a_limit_is_taken_away_by_null(server, key, batch_ids):
    act(server, key, action="limit", concurrency=4, ids=batch_ids, delay_s=0)
    done = act(server, key, action="limit", concurrency=None, ids=batch_ids, delay_s=0)
    assert (done["changed"], done["values"]) == (3, {"concurrency": None})
    undo(server, key, done["id"])
    assert view(server, key, batch_ids[0])["concurrency"] == 4


def test_a_repeated_order_with_its_key_is_one(server, key, batch_ids):
    once = {"action": "cancel", "ids": batch_ids, "delay_s": 600, "order_key": "once"}
    assert act(server, key, **once)["id"] == act(server, key, **once)["id"]


def test_the_batches_of_an_action_are_read_in_pages(server, key, batch_ids):
    done = act(server, key, action="pause", ids=batch_ids, delay_s=0)
    path = f"{ACTIONS}/{done['id']}/batches?limit=2&result=changed"
    first = server.send("GET", path, key=key).json()
    second = server.send("GET", f"{path}&after={first['last_id']}", key=key).json()
    assert [row["id"] for row in first["data"] + second["data"]] == batch_ids
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert server.send("GET", f"{ACTIONS}/{done['id']}/batches?result=odd", key=key).status == 400


def test_actions_are_listed_newest_first(server, key, batch_ids):
    ids = [act(server, key, action="pause", ids=batch_ids, delay_s=0)["id"] for _ in range(3)]
    page = server.send("GET", f"{ACTIONS}?limit=2", key=key).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    rest = server.send("GET", f"{ACTIONS}?after={page['last_id']}", key=key).json()
    assert [row["id"] for row in rest["data"]] == ids[:1]


def test_actions_of_other_projects_are_not_found(server, key, batch_ids):
    ordered = act(server, key, action="cancel", ids=batch_ids, delay_s=600)
    other = server.new_key("another project")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/start"), ("GET", "/batches")):
        assert server.send(method, f"{ACTIONS}/{ordered['id']}{path}", key=other).status == 404
    assert act(server, other, action="cancel", ids=batch_ids, delay_s=0)["total"] == 0


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"action": "pause", "codes": ["x"], "delay_s": 0}, "codes"),
        ({"action": "pause", "order_key": "x"}, "order_key"),
        ({"action": "retry", "outcomes": ["ok"]}, "outcomes"),
        ({"action": "retry", "priority": 1}, "priority"),
        ({"action": "prioritize", "delay_s": 0}, "priority"),
        ({"action": "pause", "delay_s": -1}, "delay_s"),
        ({"action": "pause", "delay_s": 100_000}, "delay_s"),
    ],
)
def test_a_wrong_order_is_refused_by_name(server, key, batch_ids, given, param):
    answer = server.send_json(ACTIONS, {"ids": batch_ids, **given}, key=key)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_retry_without_a_batch_that_has_failed_lines_does_nothing(server, key, batch_ids, turn):
    ordered = act(server, key, action="retry", ids=batch_ids)
    assert (ordered["total"], ordered["matched"]) == (0, 3)
    turn()
    assert read(server, key, ordered["id"])["state"] == "done"


def test_an_unexpected_error_of_one_action_keeps_no_other_waiting(server, key, project, batch_ids, turn):
    store = server.context.store
    broken = act(server, key, action="prioritize", priority=1, ids=batch_ids[:1], delay_s=0.001)
    sound = act(server, key, action="pause", ids=batch_ids[1:], delay_s=0.001)

    def spoil(connection):
        statement = "UPDATE bulk_action SET wanted = '{}' WHERE id = ?"
        connection.exec_driver_sql(statement, (broken["id"],))

    server.do(store.database.write(spoil))
    with pytest.raises(KeyError):
        turn()
    turn()
    assert read(server, key, sound["id"])["state"] == "done"
    waiting = read(server, key, broken["id"])
    assert "tries again" in waiting["waits_for"]
    stored = server.do(store.batches.get(ProjectId(project), BatchId(batch_ids[0])))
    assert (stored.status, stored.priority) == (Status.VALIDATING, 0)
    assert undo(server, key, broken["id"])["state"] == "cancelled"
