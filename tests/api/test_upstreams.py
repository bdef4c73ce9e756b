"""Upstreams that are added, changed, paused, drained and removed over HTTP, and what is shown of them."""

import json

import msgspec
import pytest

from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.upstream_report import ModelHold, ModelReport, UpstreamReport
from nightmill.core.upstream_setting import UpstreamState
from nightmill.ids import WorkerId
from nightmill.settings.effective import effective_of
from tests.api.test_tenants import admin_key

PATH = "/nightmill/v1/upstreams"
SECRETS = ("sk-of-the-file", "sk-added", "sk-changed", "header-secret", "query-secret")
FILE = {
    "name": "gpu-a",
    "url": "http://gpu-a:8000/v1",
    "api_key": "sk-of-the-file",
    "headers": {"X-Team": "header-secret"},
    "models": ["qwen3-8b"],
    "aliases": {"gpt-4o-mini": "qwen3-8b"},
}
ADDED = {"name": "box", "url": "http://box:11434/v1", "weight": 0.5}


WRONG = [
    ({"tls_key": "/k.pem"}, "tls_key", "Invalid 'tls_key': tls_key has no effect without tls_certificate."),
    ({"quiet_hours": "22:00-06:00 Europe/Berlin"}, "quiet_hours", "Invalid 'quiet_hours': quiet_hours has"),
    ({"name": None}, "name", "Missing required parameter: 'name'."),
    ({"url": None}, "url", "Missing required parameter: 'url'."),
    ({"url": "auto"}, "url", "Invalid 'url': it must be a URL such as http://host:8000/v1."),
    ({"url": "ftp://x"}, "url", "Invalid 'url': it must look like http://host:port/v1 or"),
    ({"url": "http://me:query-secret@x/v1"}, "url", "Invalid 'url': it holds a user name"),
    ({"name": "a b"}, "name", "Invalid 'name': the name 'a b' may hold letters, digits"),
    ({"wieght": 1}, "wieght", "Unknown parameter: 'wieght'. Did you mean 'weight'?"),
    ({"timeout_s": "sk-added"}, "timeout_s", "Invalid 'timeout_s': Input should be a valid number"),
    (
        {"max_attempts": 0},
        "max_attempts",
        "Invalid 'max_attempts': Input should be greater than or equal",
    ),
    ({"endpoints": ["/v1/x"]}, "endpoints", "Invalid 'endpoints': endpoints: '/v1/x' is not one of"),
    (
        {"models": ["a"], "aliases": {"b": "c"}},
        "aliases",
        "Invalid 'aliases': aliases: 'b' stands for 'c'",
    ),
    ({"api_key": "sk-added\n"}, "api_key", "Invalid upstream: api_key is empty or holds characters"),
    ({"headers": {"a b": "x"}}, "headers", "Invalid upstream: headers: 'a b' is not a header name"),
    ({"headers": {"host": "x"}}, "headers", "Invalid upstream: headers: 'host' is written by nightmill"),
    ({"headers": {"x": "header-secret\r\n"}}, "headers", "Invalid upstream: headers: the value of 'x'"),
    ({"revision": "1"}, "revision", "Invalid 'revision': expected an integer."),
]


@pytest.fixture
def server(serve):
    return serve(settings={"upstreams": [FILE], "upstream": {"timeout_s": 30}})


def send(server, method: str, path: str = "", document=None, *, key=None, **headers: str):
    body = None if document is None else json.dumps(document)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = server.send(method, PATH + path, body, {"Content-Type": "application/json", **names}, key=key)
    assert not [secret for secret in SECRETS if secret.encode() in answer.body]
    return answer


def names_of(server) -> list[str]:
    return [entry["name"] for entry in send(server, "GET").json()["data"]]


def settings_of(server, name: str):
    stored = server.do(server.context.store.upstreams.settings())
    effective = {upstream.name: upstream for upstream in effective_of(server.context.settings, stored)}
    return effective[name].settings


def report(server, worker: str, **fields) -> None:
    made = UpstreamReport(**{"upstream": "gpu-a", "at": 100.0, **fields})
    documents = {made.upstream: msgspec.json.encode(made).decode()}
    server.do(server.context.store.upstreams.report(WorkerId(worker), documents))


def test_an_upstream_of_the_file_is_shown_without_its_secrets(server):
    shown = send(server, "GET", "/gpu-a").json()
    assert shown["object"] == "upstream"
    assert (shown["name"], shown["url"]) == ("gpu-a", "http://gpu-a:8000/v1")
    assert (shown["state"], shown["revision"], shown["origin"]) == ("active", 0, "file")
    assert (shown["has_api_key"], shown["headers"]) == (True, ["X-Team"])
    assert (shown["models"], shown["aliases"]) == (["qwen3-8b"], {"gpt-4o-mini": "qwen3-8b"})
    assert shown["live"] is None
    assert send(server, "GET").json() == {"object": "list", "data": [shown], "problems": []}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/v1?key=query-secret&api-version=2", "http://host/v1?key=…&api-version=…"),
        ("https://host:444/v1", "https://host:444/v1"),
    ],
)
def test_the_values_in_a_query_are_not_shown(server, url, shown):
    assert send(server, "POST", "", {**ADDED, "url": url}).json()["url"] == shown


def test_an_upstream_section_with_a_url_gives_no_defaults_to_others(serve):
    server = serve(settings={"upstream": {"url": "http://gpu:8000/v1", "timeout_s": 30}})
    assert send(server, "POST", "", ADDED).json()["timeout_s"] == 600


def test_an_added_upstream_is_stored_with_the_defaults_of_the_file(server):
    added = send(server, "POST", "", {**ADDED, "api_key": "sk-added"})
    assert added.status == 200
    shown = added.json()
    assert (shown["origin"], shown["revision"], shown["weight"]) == ("run time", 1, 0.5)
    assert (shown["has_api_key"], shown["timeout_s"]) == (True, 30)
    assert added.headers["etag"] == '"1"'
    assert names_of(server) == ["gpu-a", "box"]
    assert settings_of(server, "box").api_key.get_secret_value() == "sk-added"
    assert server.notifications


def test_a_name_is_taken_once(server):
    for name in ("gpu-a", "box", "box"):
        last = send(server, "POST", "", {**ADDED, "name": name})
    assert last.status == 409
    assert last.error["code"] == "upstream_exists"
    assert send(server, "POST", "", {**ADDED, "name": "gpu-a"}).status == 409


def test_a_wrong_field_is_named_and_its_value_kept_back(server):
    for fields, param, message in WRONG:
        refused = send(server, "POST", "", {**ADDED, **fields})
        assert (refused.status, refused.error["param"]) == (400, param)
        assert refused.error["message"].startswith(message)
    assert names_of(server) == ["gpu-a"]


def test_a_change_is_merged_into_the_settings_of_the_file(server):
    changed = send(server, "PATCH", "/gpu-a", {"weight": 0, "aliases": {"small": "qwen3-8b"}}).json()
    assert (changed["origin"], changed["revision"], changed["weight"]) == ("both", 1, 0)
    assert changed["aliases"] == {"gpt-4o-mini": "qwen3-8b", "small": "qwen3-8b"}
    assert settings_of(server, "gpu-a").api_key.get_secret_value() == "sk-of-the-file"
    again = send(server, "PATCH", "/gpu-a", {"aliases": {"small": None}, "weight": None}).json()
    assert (again["aliases"], again["weight"]) == ({"gpt-4o-mini": "qwen3-8b"}, 1)


def test_a_key_is_replaced_and_removed(server):
    assert send(server, "PATCH", "/gpu-a", {"api_key": "sk-changed"}).json()["has_api_key"]
    assert settings_of(server, "gpu-a").api_key.get_secret_value() == "sk-changed"
    assert not send(server, "PATCH", "/gpu-a", {"api_key": None}).json()["has_api_key"]
    assert settings_of(server, "gpu-a").api_key is None


def test_a_key_and_headers_are_not_sent_to_another_address_unless_given_again(server):
    moved = {"url": "http://elsewhere/v1"}
    refused = send(server, "PATCH", "/gpu-a", moved)
    assert (refused.status, refused.error["param"]) == (400, "api_key")
    refused = send(server, "PATCH", "/gpu-a", {**moved, "api_key": None})
    assert (refused.status, refused.error["param"]) == (400, "headers")
    refused = send(server, "PATCH", "/gpu-a", {**moved, "api_key": None, "headers": {"Other": "x"}})
    assert (refused.status, refused.error["param"]) == (400, "headers")
    assert settings_of(server, "gpu-a").url == "http://gpu-a:8000/v1"
    done = send(server, "PATCH", "/gpu-a", {**moved, "api_key": "sk-changed", "headers": None})
    assert (done.status, done.json()["headers"]) == (200, [])
    same_address = {"url": "http://elsewhere/other/v1"}
    assert send(server, "PATCH", "/gpu-a", same_address).status == 200


def test_a_name_is_not_changed(server):
    assert send(server, "PATCH", "/gpu-a", {"name": "gpu-a", "weight": 2}).status == 200
    assert send(server, "PATCH", "/gpu-a", {"name": "other"}).error["param"] == "name"


def test_states_change_and_keep_the_settings(server):
    send(server, "PATCH", "/gpu-a", {"weight": 3})
    for verb, state in (("pause", "paused"), ("drain", "draining"), ("resume", "active")):
        shown = send(server, "POST", f"/gpu-a/{verb}").json()
        assert (shown["state"], shown["weight"]) == (state, 3)
    assert send(server, "POST", "/gpu-a/pause").json()["revision"] == 5
    assert send(server, "PATCH", "/gpu-a", {"weight": 1}).json()["state"] == "paused"


def test_an_unknown_upstream_is_a_404(server):
    for method, path in (
        ("GET", "/nope"),
        ("PATCH", "/nope"),
        ("DELETE", "/nope"),
        *(("POST", f"/nope/{verb}") for verb in ("pause", "drain", "resume", "reset")),
    ):
        refused = send(server, method, path, {} if method == "PATCH" else None)
        assert (refused.status, refused.error["code"]) == (404, "upstream_not_found"), path


def test_a_removed_upstream_of_the_file_comes_back_by_a_reset(server):
    gone = send(server, "DELETE", "/gpu-a").json()
    assert gone == {"object": "upstream.deleted", "name": "gpu-a", "deleted": True}
    assert names_of(server) == []
    assert "a reset brings it back" in send(server, "GET", "/gpu-a").error["message"]
    assert send(server, "DELETE", "/gpu-a").status == 404
    back = send(server, "POST", "/gpu-a/reset").json()
    assert (back["origin"], back["state"], back["revision"]) == ("file", "active", 0)


def test_a_removed_added_upstream_is_gone_with_its_key_and_may_be_added_again(server):
    send(server, "POST", "", {**ADDED, "api_key": "sk-added"})
    assert send(server, "DELETE", "/box").status == 200
    assert "sk-added" not in repr(server.do(server.context.store.upstreams.settings()))
    assert send(server, "GET", "/box").error["message"] == (
        "There is no upstream 'box'. The names are: 'gpu-a'."
    )
    assert send(server, "POST", "", ADDED).json()["has_api_key"] is False
    reset = send(server, "POST", "/box/reset").json()
    assert reset == {"object": "upstream.deleted", "name": "box", "deleted": True}
    assert names_of(server) == ["gpu-a"]


def test_a_reset_forgets_changes_and_state(server):
    send(server, "PATCH", "/gpu-a", {"weight": 3})
    send(server, "POST", "/gpu-a/pause")
    reset = send(server, "POST", "/gpu-a/reset").json()
    assert (reset["weight"], reset["state"], reset["revision"]) == (1, "active", 0)
    assert send(server, "POST", "/gpu-a/reset").status == 200


def test_a_change_of_an_older_revision_is_refused(server):
    assert send(server, "PATCH", "/gpu-a", {"weight": 2, "revision": 0}).status == 200
    for path, method, document, headers in (
        ("/gpu-a", "PATCH", {"weight": 3, "revision": 0}, {}),
        ("/gpu-a", "PATCH", {"weight": 3}, {"If_Match": '"0"'}),
        ("/gpu-a/pause", "POST", None, {"If_Match": "0"}),
        ("/gpu-a/reset", "POST", None, {"If_Match": '"7"'}),
        ("/gpu-a", "DELETE", None, {"If_Match": '"7"'}),
    ):
        refused = send(server, method, path, document, **headers)
        assert (refused.status, refused.error["code"]) == (409, "revision_conflict"), (method, path)
    assert send(server, "GET", "/gpu-a").json()["weight"] == 2
    assert send(server, "POST", "/gpu-a/pause", If_Match='"1"').json()["state"] == "paused"
    assert send(server, "POST", "/gpu-a/pause", If_Match="*").status == 200
    assert send(server, "POST", "/gpu-a/pause", If_Match="soon").error["param"] == "If-Match"


def test_what_workers_report_is_merged(server):
    gauges = EngineGauges("vllm", 60, 3, 0.8, None, 1)
    held = ModelHold("503", since=90.0)
    models = (ModelReport("qwen3-8b", 64, "hold: plateau", "raise --max-num-seqs", 40),)
    report(server, "w1", at=100.0, in_flight=40, waiting=5, per_model=models, gauges=gauges)
    report(server, "w2", at=90.0, in_flight=2, per_model=(ModelReport("m", in_flight=2, held=held),))
    server.do(server.context.store.upstreams.report(WorkerId("newer"), {"gpu-a": '{"unknown": 1}'}))
    live = send(server, "GET", "/gpu-a").json()["live"]
    assert (live["workers"], live["in_flight"], live["waiting"], live["reported_at"]) == (2, 42, 5, 100)
    assert live["gauges"]["running"] == 60
    by_model = {entry["model"]: entry for entry in live["per_model"]}
    why = by_model["qwen3-8b"]
    assert (why["limit"], why["rule"], why["advice"]) == (64, "hold: plateau", "raise --max-num-seqs")
    assert why["why"] == "A higher limit brought no more goodput; the next try follows after a pause."
    assert by_model["m"]["why"] is None
    assert by_model["m"]["held"]["reason"] == "503"


def test_an_upstream_that_only_workers_know_can_be_paused_and_removed_but_not_changed(server):
    report(server, "w1", upstream="elsewhere", in_flight=3)
    shown = send(server, "GET", "/elsewhere").json()
    assert (shown["origin"], shown["state"], shown["live"]["in_flight"]) == ("workers", "active", 3)
    assert names_of(server) == ["gpu-a", "elsewhere"]
    assert send(server, "POST", "/elsewhere/pause").json()["state"] == "paused"
    assert send(server, "PATCH", "/elsewhere", {"weight": 2}).status == 409
    assert send(server, "POST", "", {**ADDED, "name": "elsewhere"}).status == 409
    assert send(server, "DELETE", "/elsewhere").status == 200
    assert names_of(server) == ["gpu-a"]


def test_an_upstream_that_nightmill_runs_itself_can_be_paused_but_not_changed(serve):
    server = serve(settings={"emulator": {"enabled": True}, "upstream": {"url": "http://127.0.0.1:1/v1"}})
    assert names_of(server) == ["default"]
    assert send(server, "POST", "/default/pause").json()["state"] == "paused"
    assert send(server, "POST", "/default/resume").json()["state"] == "active"
    for method, document in (("PATCH", {"weight": 2}), ("DELETE", None)):
        refused = send(server, method, "/default", document)
        assert refused.status == 409
        assert "nightmill runs the upstream 'default' itself" in refused.error["message"]


def test_settings_of_a_newer_version_are_reported_and_can_be_removed(server):
    put = server.context.store.upstreams.put
    document = json.dumps({"name": "new", "url": "http://new/v1", "of_a_newer_version": "sk-added"})
    server.do(put("new", document=document, state=UpstreamState.ACTIVE, revision=None))
    listed = send(server, "GET").json()
    assert [entry["name"] for entry in listed["data"]] == ["gpu-a"]
    (problem,) = listed["problems"]
    assert problem == {"name": "new", "message": "of_a_newer_version: Extra inputs are not permitted"}
    assert "This version can't read the settings" in send(server, "GET", "/new").error["message"]
    assert send(server, "DELETE", "/new").status == 200
    assert send(server, "GET").json()["problems"] == []


def test_an_upstream_of_the_file_with_settings_of_a_newer_version_stays_paused_until_a_reset(server):
    put = server.context.store.upstreams.put
    document = json.dumps({"name": "gpu-a", "url": "http://new/v1", "of_a_newer_version": 1})
    server.do(put("gpu-a", document=document, state=UpstreamState.ACTIVE, revision=None))
    assert send(server, "GET", "/gpu-a").json()["state"] == "paused"
    refused = send(server, "POST", "/gpu-a/resume")
    assert refused.status == 409
    assert "reset the upstream" in refused.error["message"]
    assert send(server, "POST", "/gpu-a/reset").json()["state"] == "active"


def test_an_upstream_of_the_file_that_cannot_be_used_is_changed_with_its_secrets(serve):
    server = serve(settings={"upstreams": [{**FILE, "headers": {"host": "header-secret"}}]})
    right = {"url": "http://gpu-a/v1", "headers": None}
    assert send(server, "PATCH", "/gpu-a", right).error["param"] == "api_key"
    again = {**right, "api_key": "sk-changed"}
    assert send(server, "PATCH", "/gpu-a", again).status == 200


def test_every_change_is_in_the_audit_log(server):
    send(server, "POST", "", {**ADDED, "api_key": "sk-added"})
    send(server, "PATCH", "/box", {"weight": 2, "api_key": "sk-changed"})
    for verb in ("pause", "drain", "resume"):
        send(server, "POST", f"/box/{verb}")
    send(server, "DELETE", "/box")
    send(server, "POST", "/box/reset")
    send(server, "POST", "/box/pause")  # refused
    entries = server.do(server.context.store.audit.list()).items
    actions = [entry.action.removeprefix("upstream.") for entry in reversed(entries)]
    assert actions[-7:] == ["added", "changed", "paused", "drained", "resumed", "removed", "reset"]
    assert {entry.by.name for entry in entries[:7]} == {"keyless"}
    assert not [secret for secret in SECRETS if secret in repr(entries)]


def test_the_reset_of_an_added_upstream_removes_it_although_workers_still_report_it(server):
    send(server, "POST", "", ADDED)
    report(server, "worker-1", upstream="box")
    assert send(server, "POST", "/box/reset").json()["deleted"]


def test_only_an_admin_key_may_read_or_change(server):
    project_key, admin = server.new_key("tenant"), admin_key(server)
    for method, path in (("GET", ""), ("GET", "/gpu-a"), ("POST", "/gpu-a/pause"), ("DELETE", "/gpu-a")):
        refused = send(server, method, path, key=project_key)
        assert refused.status == 401, (method, path)
        assert "admin key" in refused.error["message"]
    assert send(server, "GET").status == 401
    assert send(server, "POST", "/gpu-a/pause", key=admin).json()["state"] == "paused"


def test_of_changes_at_the_same_moment_both_are_made(server, monkeypatch):
    upstreams = server.context.store.upstreams
    put, is_first = upstreams.put, True

    async def raced(*arguments, **options):
        nonlocal is_first
        if is_first:
            is_first = False
            await put("gpu-a", document=None, state=UpstreamState.PAUSED, revision=None)
        return await put(*arguments, **options)

    monkeypatch.setattr(upstreams, "put", raced, raising=False)
    changed = send(server, "PATCH", "/gpu-a", {"weight": 2}).json()
    assert (changed["weight"], changed["state"], changed["revision"]) == (2, "paused", 2)
