"""Retries of many batches at once, done by a real server: each line is repeated once."""

from tests.acceptance.conftest import until

BAD = (400, "too_odd")


def order(mill, ids, **fields):
    answer = mill.post("actions", {"action": "retry", "ids": ids, **fields})
    assert answer.status == 200, answer.body
    return answer.json()


def done(mill, action_id):
    until(lambda: mill.get(f"actions/{action_id}").json()["state"] in ("done", "cancelled"))
    return mill.get(f"actions/{action_id}").json()


def items(mill, action_id):
    return mill.get(f"actions/{action_id}/batches").json()["data"]


def custom_ids(mill, batch_id):
    retry = mill.ended(batch_id)
    return [row.split('"')[3] for row in mill.input_of(retry).decode().splitlines()]


def test_the_failed_lines_of_each_batch_are_repeated_in_a_batch_of_its_own(mill):
    mill.upstream.failing = {"b": BAD, "d": BAD}
    origins = [mill.run("a", "b"), mill.run("c", "d"), mill.run("a")]
    ids = [origin.id for origin in origins]
    shown = mill.post("actions", {"action": "retry", "ids": ids, "dry_run": True}).json()
    assert (shown["matched"], shown["total"], shown["failed_lines"]) == (3, 2, 2)
    action = done(mill, order(mill, ids)["id"])
    assert (action["total"], action["changed"], action["undo"]) == (2, 2, None)
    retries = [row["retry_id"] for row in items(mill, action["id"])]
    assert [custom_ids(mill, batch_id) for batch_id in retries] == [["b"], ["d"]]


def test_only_lines_with_a_code_are_repeated_and_other_batches_are_unchanged(mill):
    mill.upstream.failing = {"b": BAD, "c": (404, "gone")}
    first, second = mill.run("b", "c"), mill.run("b")
    action = done(mill, order(mill, [first.id, second.id], codes=["gone"])["id"])
    assert (action["changed"], action["unchanged"]) == (1, 1)
    rows = items(mill, action["id"])
    assert custom_ids(mill, rows[0]["retry_id"]) == ["c"]
    assert rows[1]["message"] == "None of its lines is to be repeated."


def test_a_retry_that_is_called_off_in_time_makes_no_batch(mill):
    mill.upstream.failing = {"b": BAD}
    origin = mill.run("b")
    action = order(mill, [origin.id], delay_s=600)
    answer = mill.server.send("DELETE", f"/nightmill/v1/batches/actions/{action['id']}")
    assert answer.json()["state"] == "cancelled"
    assert items(mill, action["id"])[0]["retry_id"] is None


def test_a_batch_whose_input_is_deleted_is_refused_and_the_others_are_retried(mill):
    mill.upstream.failing = {"b": BAD}
    lost, kept = mill.run("b"), mill.run("b")
    mill.client.openai.files.delete(lost.input_file_id)
    action = done(mill, order(mill, [lost.id, kept.id])["id"])
    assert (action["refused"], action["changed"]) == (1, 1)
