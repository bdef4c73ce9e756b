"""The priority of a batch: the key `nightmill` on create, and `/nightmill/v1/batches`."""

import openai
import pytest

from nightmill.core.batch import Event
from nightmill.ids import BatchId, ProjectId
from tests.api.test_batches import create


def options(**given):
    return {"extra_body": {"nightmill": given}}


def priority_of(server, key, batch_id):
    answer = server.send("GET", f"/nightmill/v1/batches/{batch_id}", key=key)
    assert answer.status == 200
    return answer.json()["priority"]


def test_a_batch_has_the_priority_of_its_creation_and_no_further_field(server, client, key, input_file_id):
    batch = create(client, input_file_id, **options(priority=3))
    plain = create(client, input_file_id)
    assert set(batch.to_dict()) == set(plain.to_dict())
    assert priority_of(server, key, batch.id) == 3
    assert priority_of(server, key, plain.id) == 0
    assert priority_of(server, key, create(client, input_file_id, **options()).id) == 0
    assert priority_of(server, key, create(client, input_file_id, extra_body={"nightmill": None}).id) == 0


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"priority": 11}, "nightmill.priority", "integer_above_max_value"),
        ({"priority": -11}, "nightmill.priority", "integer_below_min_value"),
        ({"priority": "1"}, "nightmill.priority", "invalid_type"),
        ({"priority": 1.5}, "nightmill.priority", "invalid_type"),
        ({"priority": True}, "nightmill.priority", "invalid_type"),
        ({"priorty": 1}, "nightmill.priorty", "unknown_parameter"),
        (7, "nightmill", "invalid_type"),
    ],
)
def test_a_wrong_priority_is_refused_by_name(client, input_file_id, given, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, input_file_id, extra_body={"nightmill": given})
    assert (caught.value.param, caught.value.code) == (param, code)


def test_the_priority_of_an_open_batch_is_changed_and_recorded(server, client, key, project, input_file_id):
    batch = create(client, input_file_id)
    answer = server.send_json(f"/nightmill/v1/batches/{batch.id}", {"priority": -10}, key=key)
    assert answer.status == 200
    shown = answer.json()
    assert (shown["id"], shown["status"], shown["priority"]) == (batch.id, "validating", -10)
    assert priority_of(server, key, batch.id) == -10
    page = server.do(server.context.store.audit.list(project_id=ProjectId(project), limit=1))
    assert (page.items[0].action, page.items[0].subject_id) == ("batch.prioritized", batch.id)
    assert page.items[0].detail == "-10"


@pytest.mark.parametrize("document", [{}, {"priority": 11}, {"priority": None}, {"priority": 1, "x": 1}, []])
def test_a_wrong_change_is_refused_and_changes_nothing(server, client, key, input_file_id, document):
    batch = create(client, input_file_id, **options(priority=2))
    answer = server.send_json(f"/nightmill/v1/batches/{batch.id}", document, key=key)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert priority_of(server, key, batch.id) == 2


def test_the_priority_of_an_ended_batch_cannot_be_changed(server, client, key, project, input_file_id):
    batch = create(client, input_file_id)
    store = server.context.store
    for event in (Event.CANCEL_REQUESTED, Event.CANCELLED):
        stored = server.do(store.batches.get(ProjectId(project), BatchId(batch.id)))
        assert server.do(store.batches.move(stored.after(event, now=0), expected=stored.status))
    answer = server.send_json(f"/nightmill/v1/batches/{batch.id}", {"priority": 1}, key=key)
    assert answer.status == 409
    assert answer.error["message"] == "Cannot change the priority of a batch with status 'cancelled'."
    assert priority_of(server, key, batch.id) == 0


def test_batches_of_other_projects_are_not_found(server, client, key, input_file_id):
    batch = create(client, input_file_id)
    other_key = server.new_key("another project")
    path = f"/nightmill/v1/batches/{batch.id}"
    assert server.send("GET", path, key=other_key).status == 404
    assert server.send_json(path, {"priority": 5}, key=other_key).status == 404
    assert server.send("GET", "/nightmill/v1/batches/batch_none", key=key).status == 404
    assert server.send("GET", path).status == 401
    assert priority_of(server, key, batch.id) == 0
