"""Keys, projects, and access without a key on loopback (docs/openai-behaviour.md 6.2)."""

import base64
import json
import socket
import time

import openai
import pytest

from nightmill.api.auth import is_local
from nightmill.core.api_key import Scope, digest_of, make_api_key
from nightmill.errors import UnavailableError
from nightmill.store import Store
from tests.store_doubles import broken_store, with_verb

MISSING = "Missing bearer or basic authentication in header"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer  "}]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/batches"),
        ("POST", "/v1/batches"),
        ("PUT", "/v1/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/batches/invalid"),
        ("GET", "/v1/nowhere"),
        ("GET", "/elsewhere"),
        ("GET", "/v1//batches/"),
        ("GET", "/health/x"),
    ],
)
def test_a_request_without_a_key_is_refused_before_other_checks(server, method, path, headers):
    answer = server.send(method, path, b"{", headers)
    assert answer.status == 401
    assert answer.error == {
        "message": MISSING,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs", "/health/"]
)
def test_public_paths_need_no_key(server, path):
    assert server.send("GET", path).status == 200


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_key_gives_access_to_its_project(server, key, name, scheme):
    assert server.send("GET", "/v1/batches", headers={name: f"{scheme} {key}"}).status == 200


def test_an_api_key_header_is_accepted(server, key):
    assert server.send("GET", "/v1/batches", headers={"api-key": key}).status == 200


@pytest.mark.parametrize("secret", ["sk-wrong", "sk-" + "x" * 60, "k\xe9y", "a b", "x" * 9_000, "' OR 1=1"])
@pytest.mark.parametrize("header", ["Authorization", "api-key"])
def test_a_wrong_key_is_refused_and_not_repeated_in_the_message(server, secret, header):
    value = f"Bearer {secret}" if header == "Authorization" else secret
    answer = server.send("POST", "/v1/batches", b"{", {header: value})
    assert answer.status == 401
    assert answer.error["message"].startswith("Incorrect API key provided: ")
    assert answer.error["code"] == "invalid_api_key"
    assert secret not in answer.body.decode()
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_official_client_raises_an_authentication_error(server):
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("sk-wrong").batches.list()
    assert caught.value.code == "invalid_api_key"


def test_basic_credentials_are_refused(server, key):
    credentials = base64.b64encode(f"user:{key}".encode()).decode()
    answer = server.send("GET", "/v1/batches", headers={"Authorization": f"Basic {credentials}"})
    assert answer.status == 401
    assert answer.error["message"] == MISSING


def test_a_revoked_key_stops_working_within_seconds(serve):
    now = [time.time()]
    server = serve(clock=lambda: now[0])
    server.new_key("stays")
    secret = server.new_key("goes")
    store: Store = server.context.store
    assert server.send("GET", "/v1/batches", key=secret).status == 200
    digest = digest_of(secret)
    key_id = next(one.id for one in server.do(store.api_keys.list()) if one.digest == digest)
    assert server.do(store.api_keys.revoke(key_id))
    now[0] += 3
    assert server.send("GET", "/v1/batches", key=secret).status == 401


def test_polling_does_not_look_up_the_key_each_time(serve):
    from dataclasses import replace

    asked = []

    def counting(context):
        async def get(digest):
            asked.append(digest)
            return await context.store.api_keys.get(digest)

        return replace(context, store=with_verb(context.store, "api_keys", "get", get))

    server = serve(change=counting, clock=lambda: 5.0)
    secret = server.new_key("p")
    for _ in range(5):
        assert server.send("GET", "/v1/batches", key=secret).status == 200
    assert len(asked) == 1


# --- no key yet --------------------------------------------------------------------------------------


def test_without_any_key_loopback_requests_are_accepted(serve):
    server = serve()
    batch = server.client("whatever").batches.create(
        input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h"
    )
    answer = server.send("GET", f"/v1/batches/{batch.id}")
    assert answer.status == 200
    stored = server.do(server.context.store.batches.get("default", batch.id))
    assert stored.project_id == "default"


def test_after_the_first_key_requests_without_a_key_are_refused_within_seconds(serve):
    now = [time.time()]
    server = serve(clock=lambda: now[0])
    assert server.send("GET", "/v1/batches").status == 200
    secret = server.new_key("p")
    now[0] += 3
    assert server.send("GET", "/v1/batches").status == 401
    assert server.send("GET", "/v1/batches", key=secret).status == 200


@pytest.mark.parametrize("settings", [{"keyless_on_loopback": False}, {"api": {"host": "0.0.0.0"}}])
def test_requests_without_a_key_are_accepted_only_as_settings_allow(serve, settings):
    assert serve(settings=settings).send("GET", "/v1/batches").status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "127.9.9.9"}, 200),
        ({"Host": "rebound.example"}, 401),
        ({"Host": "127.0.0.1.example"}, 401),
        ({"Host": ""}, 401),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://example.com"}, 401),
        ({"Origin": "null"}, 401),
    ],
)
def test_pages_of_other_origins_are_refused_without_a_key(serve, headers, status):
    assert serve().send("GET", "/v1/batches", headers=headers).status == status


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "x-forwarded-for", "X-Forwarded-Host", "X-Real-IP", "Forwarded"]
)
def test_a_server_without_keys_refuses_clients_of_a_local_proxy(serve, header):
    server = serve()
    proxied = {"Host": "127.0.0.1:8080", header: "192.0.2.7"}
    answer = server.send("GET", "/v1/batches", headers=proxied)
    assert answer.status == 401
    assert f"through a proxy (it has the header {header})".lower() in answer.error["message"].lower()
    assert answer.error["message"].endswith("with `nightmill keys create NAME`.")
    assert "192.0.2.7" not in answer.body.decode()
    assert server.send("GET", "/health", headers=proxied).status == 200


def test_with_a_key_a_request_through_a_proxy_is_answered(serve):
    server = serve()
    secret = server.new_key("p")
    assert server.send("GET", "/v1/batches", headers={"X-Forwarded-For": "::1"}, key=secret).status == 200


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "gpu-a.lan:8080"}, "it was called as 'gpu-a.lan'"),
        ({"Host": "a\tb"}, "it was called as another name"),
        ({"Host": "a" * 200}, "it was called as another name"),
        ({"Origin": "https://example.com"}, "this request is of a web page of 'example.com'"),
    ],
)
@pytest.mark.parametrize("key", [None, "unused"])
def test_a_server_without_keys_that_is_called_by_another_name_says_so(serve, headers, reason, key):
    answer = serve().send("GET", "/v1/batches", headers=headers, key=key)
    assert answer.status == 401
    assert (
        f"answers only requests that call it localhost or 127.0.0.1, and {reason}. "
        in answer.error["message"]
    )
    assert answer.error["message"].endswith("with `nightmill keys create NAME`.")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_hosts_are_recognized(host, expected):
    assert is_local(host) is expected


# --- rates -------------------------------------------------------------------------------------------


def test_a_key_over_its_rate_gets_a_retry_after_header(serve):
    now = [time.time()]
    server = serve(settings={"api": {"requests_per_minute": 3}}, clock=lambda: now[0])
    secret, other = server.new_key("p"), server.new_key("q")
    assert [server.send("GET", "/v1/batches", key=secret).status for _ in range(3)] == [200] * 3
    answer = server.send("GET", "/v1/batches", key=secret)
    assert answer.status == 429
    assert (answer.error["type"], answer.error["code"]) == ("requests", "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "20"
    assert server.send("GET", "/v1/batches", key=other).status == 200
    assert server.send("GET", "/health").status == 200
    now[0] += 20
    assert server.send("GET", "/v1/batches", key=secret).status == 200
    assert server.send("GET", "/v1/batches", key=secret).status == 429


def test_a_clock_that_steps_back_does_not_extend_the_rate_limit(serve):
    now = [time.time()]
    server = serve(settings={"api": {"requests_per_minute": 60}}, clock=lambda: now[0])
    secret = server.new_key("p")
    assert server.send("GET", "/v1/batches", key=secret).status == 200
    now[0] -= 3_600
    assert server.send("GET", "/v1/batches", key=secret).status == 200


def test_an_unavailable_store_is_a_503_and_not_a_401(serve):
    from dataclasses import replace

    away = broken_store(UnavailableError("away"))
    server = serve(change=lambda context: replace(context, store=away))
    assert server.send("GET", "/v1/batches", key="sk-any").status == 503


# --- making keys -------------------------------------------------------------------------------------


def test_a_key_is_stored_as_a_digest_only():
    secret, key = make_api_key(bytes, project_id="p", name="n", created_at=5)
    assert secret.startswith("sk-")
    assert len(secret) > 43
    assert key.digest == digest_of(secret)
    assert key.hint == secret[-4:]
    assert secret not in repr(key)
    assert (key.project_id, key.name, key.created_at, key.revoked_at) == ("p", "n", 5, None)


def test_two_new_keys_differ():
    import secrets

    made = [make_api_key(secrets.token_bytes, project_id="p", name="n", created_at=5) for _ in range(100)]
    assert len({secret for secret, _ in made}) == len({key.id for _, key in made}) == 100


# --- refusals while a body is on its way ---------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/uploads"])
def test_a_refused_client_that_is_still_sending_receives_the_error(server, path):
    answer = server.send("POST", path, b"x" * 20_000_000, {"Content-Type": "text/plain"}, key="sk-wrong")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


def test_a_refused_client_that_stops_sending_is_disconnected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\nx"
        )
        answer = connection.makefile("rb").read()  # ends when the server closes
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/batches"),
        ("POST", "/v1//batches/"),
        ("POST", "/v1/files"),
        ("POST", "/v1/batches/batch_1/cancel"),
        ("DELETE", "/v1/files/file-1"),
        ("POST", "/nightmill/v1/batches/actions"),
        ("POST", "/v1/webhook_endpoints"),
        ("PUT", "/v1/batches"),
    ],
)
def test_a_key_that_may_only_read_changes_nothing(server, project, method, path):
    reader = server.new_key(project, Scope.READ)
    answer = server.send(method, path, b"{", key=reader)
    assert answer.status == 403
    assert answer.error["code"] == "insufficient_permissions"
    assert "may only read" in answer.error["message"]


def test_a_key_that_may_only_read_sees_its_project_and_estimates(server, project, input_file_id):
    reader = server.new_key(project, Scope.READ)
    assert server.send("GET", f"/v1/files/{input_file_id}", key=reader).status == 200
    assert server.send("GET", f"/v1/files/{input_file_id}/content", key=reader).status == 200
    body = json.dumps({"input_file_id": input_file_id, "endpoint": "/v1/chat/completions"})
    headers = {"content-type": "application/json"}
    assert server.send("POST", "/nightmill/v1/estimates", body, headers, key=reader).status == 200
    assert server.send("GET", "/nightmill/v1/audit", key=reader).status == 401
    assert server.send("GET", "/nightmill/v1/usage?project_id=another", key=reader).status == 401
