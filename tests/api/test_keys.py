"""Keys, projects, holds, settings and the audit log under `/nightmill/v1`, for admin keys."""

import json

import pytest

from nightmill.api.health import VERSION
from nightmill.core.api_key import Scope
from nightmill.core.legal_hold import HoldKind
from nightmill.store.steps import SCHEMA_VERSION

JSON = {"content-type": "application/json"}
ROUTES = [
    ("GET", "/nightmill/v1/keys"),
    ("POST", "/nightmill/v1/keys"),
    ("DELETE", "/nightmill/v1/keys/key_1"),
    ("GET", "/nightmill/v1/projects"),
    ("PATCH", "/nightmill/v1/projects/p"),
    ("GET", "/nightmill/v1/system"),
    ("GET", "/nightmill/v1/settings"),
    ("GET", "/nightmill/v1/holds"),
    ("GET", "/nightmill/v1/audit?action=key"),
]


@pytest.fixture
def admin(server, project) -> str:
    return server.new_key(project, Scope.ADMIN)


def made(server, admin, **fields):
    return server.send("POST", "/nightmill/v1/keys", json.dumps(fields), JSON, key=admin)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_an_admin_key_may_call(server, key, method, path):
    answer = server.send(method, path, b"{}" if method != "GET" else None, JSON, key=key)
    assert answer.status == 401
    assert "needs an admin key" in answer.error["message"]


def test_a_key_is_made_used_and_revoked(server, admin, project):
    answer = made(server, admin, name=" ci ", project_id=project, scope="read")
    assert answer.status == 200
    document = answer.json()
    secret = document.pop("secret")
    assert (document["name"], document["scope"], document["hint"]) == ("ci", "read", secret[-4:])
    assert server.send("GET", "/v1/batches", key=secret).status == 200
    listed = server.send("GET", "/nightmill/v1/keys", key=admin)
    assert document in listed.json()["data"]
    assert secret not in listed.body.decode()
    assert server.send("DELETE", f"/nightmill/v1/keys/{document['id']}", key=admin).status == 200
    assert server.send("DELETE", f"/nightmill/v1/keys/{document['id']}", key=admin).status == 404
    found = server.send("GET", f"/nightmill/v1/audit?subject_id={document['id']}", key=admin).json()
    assert [(it["action"], it["detail"]) for it in found["data"]] == [
        ("key.revoked", None),
        ("key.created", "scope read"),
    ]
    assert found["has_more"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "n", "scope": "root"}, "scope"),
        ({"name": "n", "project_id": " "}, "project_id"),
        ({"name": "n", "secret": "mine"}, "secret"),
    ],
)
def test_a_key_with_a_wrong_field_is_refused(server, admin, fields, param):
    answer = made(server, admin, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_projects_are_listed_with_what_they_use(server, admin, project, input_file_id):
    assert input_file_id
    near = f"/nightmill/v1/projects?limit=200&after={project[:-1]}"  # other tests make hundreds of projects
    page = server.send("GET", near, key=admin).json()
    (mine,) = [it for it in page["data"] if it["project_id"] == project]
    assert mine["used"]["stored_bytes"] > 0
    assert mine["keys"] == 2
    server.new_key("another")
    first = server.send("GET", "/nightmill/v1/projects?limit=1", key=admin).json()
    assert (len(first["data"]), first["has_more"]) == (1, True)
    after = first["data"][0]["project_id"]
    second = server.send("GET", f"/nightmill/v1/projects?after={after}", key=admin).json()
    assert after not in [it["project_id"] for it in second["data"]]


def test_limits_of_a_project_change_and_go_back_to_the_settings(server, admin, project):
    path = f"/nightmill/v1/projects/{project}"
    body = json.dumps({"open_batches": 3, "input_ttl_s": 7200})
    assert server.send("PATCH", path, body, JSON, key=admin).json()["own"] == {
        "open_batches": 3,
        "input_ttl_s": 7200,
    }
    cleared = server.send("PATCH", path, '{"open_batches": null}', JSON, key=admin)
    assert cleared.json()["own"] == {"input_ttl_s": 7200}
    short = server.send("PATCH", path, '{"input_ttl_s": 5}', JSON, key=admin)
    assert (short.status, short.error["param"]) == (400, "input_ttl_s")


def test_the_system_names_its_versions_and_its_store(server, admin):
    document = server.send("GET", "/nightmill/v1/system", key=admin).json()
    assert document["store"]["kind"] == "SQLite"
    assert document["store"]["size_bytes"] > 0
    assert document["store"]["schema"] == SCHEMA_VERSION
    assert document["version"] == VERSION


def test_holds_are_listed(server, admin, project):
    server.do(server.context.store.holds.set(HoldKind.PROJECT, project, reason="case 7"))
    listed = server.send("GET", "/nightmill/v1/holds", key=admin).json()["data"]
    assert ("project", project, "case 7") in [(it["kind"], it["subject_id"], it["reason"]) for it in listed]
    server.do(server.context.store.holds.clear(HoldKind.PROJECT, project))
