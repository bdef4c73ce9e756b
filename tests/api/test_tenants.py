"""Quotas, legal holds, and access to `/nightmill/v1`."""

import secrets
import time

import openai
import pytest

from nightmill.core.api_key import Scope, make_api_key
from nightmill.core.legal_hold import HoldKind
from nightmill.core.limits import ProjectRules
from nightmill.ids import ProjectId
from tests.api.conftest import LINE, serving

CHAT = "/v1/chat/completions"


@pytest.fixture
def limited(tmp_path):
    settings = {
        "quota": {"open_batches": 1, "stored_bytes": 2 * len(LINE)},
        "audit": {"downloads": True},
        "keyless_on_loopback": True,
    }
    with serving(tmp_path, settings=settings) as server:
        yield server


def admin_key(server) -> str:
    secret, key = make_api_key(
        secrets.token_bytes,
        project_id=ProjectId("ops"),
        name="admin",
        created_at=int(time.time()),
        scope=Scope.ADMIN,
    )
    server.do(server.context.store.api_keys.add(key))
    return secret


def upload(client, content: str = LINE):
    return client.files.create(file=content.encode(), purpose="batch")


def create(client, file_id: str):
    return client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")


def test_a_create_over_the_quota_of_open_batches_is_refused_at_once(limited):
    client = limited.client(max_retries=2)
    file = upload(client)
    create(client, file.id)
    with pytest.raises(openai.RateLimitError, match="Limit: 1 enqueued batches") as caught:
        create(client, file.id)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "60"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_an_upload_over_the_storage_quota_is_refused_and_leaves_no_bytes(limited):
    client = limited.client()
    first, _ = upload(client), upload(client)
    with pytest.raises(openai.BadRequestError, match="Storage limit reached") as caught:
        upload(client)
    assert caught.value.code == "storage_limit_exceeded"
    assert len(list((limited.folder / "blobs/files").iterdir())) == 2
    client.files.delete(first.id)
    upload(client)


def test_deleting_a_file_under_legal_hold_is_refused_with_a_reason(limited):
    client = limited.client(max_retries=2)
    file = upload(client)
    limited.do(limited.context.store.holds.set(HoldKind.FILE, file.id))
    with pytest.raises(openai.ConflictError, match="under legal hold") as caught:
        client.files.delete(file.id)
    assert caught.value.code == "legal_hold"
    limited.do(limited.context.store.holds.clear(HoldKind.FILE, file.id))
    assert client.files.delete(file.id).deleted


def test_the_ttl_of_a_project_overrides_the_settings(limited):
    client = limited.client()
    rules = ProjectRules(input_ttl_s=7_200)
    limited.do(limited.context.store.projects.set_rules(ProjectId("default"), rules))
    file = upload(client)
    assert file.expires_at - file.created_at == 7_200


def test_the_audit_log_names_actor_action_and_address_but_no_key(limited):
    key = limited.new_key("night")
    client = limited.client(key)
    response = client.files.with_raw_response.create(file=LINE.encode(), purpose="batch")
    file = response.parse()
    batch = create(client, file.id)
    client.batches.retrieve(batch.id)
    client.batches.cancel(batch.id)
    client.files.content(file.id)
    client.files.delete(file.id)

    answer = limited.send("GET", "/nightmill/v1/audit?project_id=night", key=admin_key(limited))
    entries = answer.json()["data"]
    assert [entry["action"] for entry in reversed(entries)] == [
        *("file.created", "batch.created", "batch.cancelled", "file.downloaded", "file.deleted"),
    ]
    first = entries[-1]
    assert first["subject_id"] == file.id
    assert first["hint"] == key[-4:]
    assert first["address"] == "127.0.0.1"
    assert first["request_id"] == response.headers["x-request-id"]
    assert key.encode() not in answer.body
    more = limited.send(
        "GET", f"/nightmill/v1/audit?limit=1&after={entries[0]['id']}", key=admin_key(limited)
    )
    assert [entry["id"] for entry in more.json()["data"]] == [entries[1]["id"]]
    assert more.json()["has_more"]


@pytest.mark.parametrize("path", ["/audit", "/usage?project_id=day", "/quotas?project_id=day"])
def test_a_projects_key_sees_its_own_project_only(limited, path):
    key = limited.new_key("night")
    refused = limited.send("GET", f"/nightmill/v1{path}", key=key)
    assert refused.status == 401
    assert "insufficient permissions" in refused.error["message"]
    assert limited.send("GET", f"/nightmill/v1{path}", key=admin_key(limited)).status == 200
    assert limited.send("GET", f"/nightmill/v1{path}").status == 401
    for own in ("/usage", "/quotas"):
        assert limited.send("GET", f"/nightmill/v1{own}", key=key).status == 200


def test_quotas_show_limits_and_usage(limited):
    client = limited.client()
    create(client, upload(client).id)
    rules = ProjectRules(open_lines=7, output_ttl_s=3_600)
    limited.do(limited.context.store.projects.set_rules(ProjectId("default"), rules))
    told = limited.send("GET", "/nightmill/v1/quotas").json()
    assert told["project_id"] == "default"
    assert told["limits"] == {
        "open_batches": 1,
        "open_lines": 7,
        "open_bytes": 0,
        "stored_bytes": 2 * len(LINE),
        "enqueued_tokens": 0,
    }
    assert told["own"] == {"open_lines": 7, "output_ttl_s": 3_600}
    assert told["used"] == {
        "open_batches": 1,
        "open_lines": 0,
        "open_bytes": len(LINE),
        "stored_bytes": len(LINE),
        "enqueued_tokens": {},
    }


@pytest.mark.parametrize(
    ("query", "param"), [("group_by=hour", "group_by"), ("from=yesterday", "from"), ("to=2026-13-01", "to")]
)
def test_an_invalid_usage_query_is_a_400(limited, query, param):
    refused = limited.send("GET", f"/nightmill/v1/usage?{query}")
    assert (refused.status, refused.error["param"]) == (400, param)


def test_the_openapi_document_omits_these_routes(limited):
    assert "/nightmill" not in limited.send("GET", "/openapi.json").body.decode()
