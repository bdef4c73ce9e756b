"""The list of batches under `/nightmill/v1`: filters, facets, rows, and batches of other projects."""

import time
from urllib.parse import urlencode

import pytest

from tests.api.conftest import LINE
from tests.api.test_batches import create
from tests.api.test_tenants import admin_key

ROOT = "/nightmill/v1/batches"


@pytest.fixture
def admin(server) -> str:
    return admin_key(server)


def get(server, key, path="", *, expected=200, **query):
    answer = server.send("GET", f"{ROOT}{path}?{urlencode(query, doseq=True)}", key=key)
    assert answer.status == expected, answer.body
    return answer.json()


def listed(server, key, **query) -> list[str]:
    return [batch["id"] for batch in get(server, key, **query)["data"]]


def test_a_row_has_what_a_table_of_batches_shows(server, client, key, project, input_file_id):
    batch_id = create(client, input_file_id, metadata={"team": "a"}).id
    (row,) = get(server, key)["data"]
    assert (row["id"], row["project"], row["file_name"]) == (batch_id, project, "in.jsonl")
    assert (row["input_file_id"], row["retries"], row["completed_at"]) == (input_file_id, 0, None)
    assert set(row["usage"]) >= {"input_tokens", "output_tokens", "total_tokens"}
    assert row["why"]["code"] and row["forecast"]["in_flight"] == 0
    assert row["forecast"]["ends_at"] is None
    one = get(server, key, f"/{batch_id}")
    changing = {"why": None, "forecast": None}
    assert {**one, **changing} == {**row, **changing, "origins": [], "repeated_by": []}


def test_batches_are_found_by_text_time_priority_and_upstream(server, client, key, input_file_id):
    one = create(client, input_file_id, metadata={"team": "night shift"}).id
    now = int(time.time())
    assert listed(server, key, q="NIGHT") == listed(server, key, q=one) == [one]
    assert listed(server, key, q="in.json") == [one]
    assert listed(server, key, q="nothing") == []
    assert listed(server, key, created_after=now - 600, created_before=now + 600) == [one]
    assert listed(server, key, created_after=now + 600) == []
    assert listed(server, key, priority=0) == [one]
    assert listed(server, key, priority=1) == []
    refused = get(server, key, upstream="nowhere", expected=400)
    assert refused["error"]["param"] == "upstream"
    assert get(server, key, q="x" * 501, expected=400)["error"]["param"] == "q"


def test_batches_are_counted_and_found_by_the_upstream_that_serves_them(serve):
    settings = {
        "upstreams": [
            {"name": "gpu", "url": "http://gpu:8000/v1", "models": ["m"]},
            {"name": "images", "url": "http://i:8000/v1", "endpoints": ["/v1/images/edits"], "models": ["m"]},
        ]
    }
    server = serve(settings=settings)
    key = server.new_key("proj_up")
    client = server.client(key)
    one = create(client, client.files.create(file=LINE.encode(), purpose="batch").id).id
    assert get(server, key, "/facets")["upstream"] == [{"value": "gpu", "count": 1}]
    assert listed(server, key, upstream="gpu") == [one]
    assert listed(server, key, upstream="images") == []


def test_facets_count_what_matches(server, client, key, input_file_id):
    for team in ("a", "a", "b"):
        create(client, input_file_id, metadata={"team": team})
    facets = get(server, key, "/facets", q="team")
    assert (facets["object"], facets["total"], facets["paused"]) == ("nightmill.batch_facets", 3, 0)
    assert facets["status"] == [{"value": "validating", "count": 3}]
    assert facets["endpoint"] == [{"value": "/v1/chat/completions", "count": 3}]
    values = [{"value": "a", "count": 2}, {"value": "b", "count": 1}]
    assert facets["metadata"] == [{"key": "team", "values": values, "has_more": False}]
    assert facets["metadata_of_newest"] == 3
    assert get(server, key, "/facets", metadata="team=b")["total"] == 1
    assert get(server, key, "/facets", status="failed")["total"] == 0


def test_unfinished_batches_first_are_paged_by_the_cursor_of_the_page(server, client, key, input_file_id):
    made = [create(client, input_file_id).id for _ in range(3)]
    first = get(server, key, order="unfinished_first", limit=2)
    assert first["has_more"]
    rest = get(server, key, order="unfinished_first", limit=2, after=first["next_after"])
    assert [batch["id"] for batch in (*first["data"], *rest["data"])] == made[::-1]
    assert rest["next_after"] is None
    assert get(server, key, order="unfinished_first", after="unfinished:no id", expected=404)
    assert get(server, key, order="oldest", expected=400)["error"]["param"] == "order"


def test_an_admin_key_sees_batches_of_any_project(server, client, key, project, admin, input_file_id):
    one = create(client, input_file_id).id
    shown = get(server, admin, f"/{one}")
    assert (shown["id"], shown["project"]) == (one, project)
    assert listed(server, admin) == []
    assert listed(server, admin, project=project) == [one]
    assert one in listed(server, admin, project="*", limit=100)
    counted = get(server, admin, "/facets", project="*")["project"]
    assert {"value": project, "count": 1} in counted


def test_a_key_of_a_project_sees_no_other_one(server, client, key, project, input_file_id):
    one = create(client, input_file_id).id
    other = server.new_key("proj_apart")
    assert get(server, other, f"/{one}", expected=404)
    assert get(server, other, project=project, expected=401)
    assert get(server, other, "/facets", project=project, expected=401)
    assert listed(server, other, project="*") == []
    assert listed(server, key, project="*") == listed(server, key, project=project) == [one]


def test_an_admin_key_acts_for_the_project_that_a_header_names(
    server, client, key, project, admin, input_file_id
):
    one = create(client, input_file_id).id

    def send(method: str, path: str, by: str, named: str):
        return server.send(method, path, headers={"X-Nightmill-Project": named}, key=by)

    assert send("GET", f"/v1/batches/{one}", admin, project).json()["id"] == one
    assert send("POST", f"{ROOT}/{one}/pause", admin, project).json()["paused_at"]
    assert send("GET", f"/v1/batches/{one}", admin, "elsewhere").status == 404
    assert send("GET", f"/v1/batches/{one}", key, project).status == 200
    assert send("GET", f"/v1/batches/{one}", key, "elsewhere").status == 401
    assert send("GET", f"/v1/batches/{one}", server.new_key("elsewhere"), project).status == 401
    for wrong in ("", "a\tb"):
        refused = send("GET", "/v1/batches", admin, wrong)
        assert (refused.status, refused.error["param"]) == (400, "x-nightmill-project")
