"""The envelope of every error (docs/openai-behaviour.md 4.2, 6, 9.2)."""

import http.client
import json
import socket
from dataclasses import replace

import httpx2
import openai
import pytest

from nightmill.errors import StorageFullError, UnavailableError
from tests.store_doubles import broken_store

GOOD = {"input_file_id": "file-abc", "endpoint": "/v1/embeddings", "completion_window": "24h"}
ENDPOINTS = (
    "'/v1/responses', '/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/moderations', "
    "'/v1/images/generations', '/v1/images/edits', and '/v1/videos'"
)
EXPIRES = {"anchor": "created_at", "seconds": 3_600}


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("document", "message", "param", "code"),
    [
        *(
            (without(name), f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
            for name in GOOD
        ),
        ({}, "Missing required parameter: 'input_file_id'.", "input_file_id", "missing_required_parameter"),
        *(
            (
                GOOD | {name: value},
                f"Invalid type for '{name}': expected a string, but got {kind} instead.",
                name,
                "invalid_type",
            )
            for name in GOOD
            for value, kind in [
                (1, "an integer"),
                (1.5, "a decimal number"),
                (True, "a boolean"),
                (None, "null"),
                ([], "an array"),
                ({}, "an object"),
            ]
        ),
        (
            GOOD | {"endpoint": "/v1/invalid"},
            f"Invalid value: '/v1/invalid'. Supported values are: {ENDPOINTS}.",
            "endpoint",
            "invalid_value",
        ),
        *(
            (
                GOOD | {"completion_window": window},
                f"Invalid value: '{window}'. Supported values are: '24h'.",
                "completion_window",
                "invalid_value",
            )
            for window in ("1h", "48h", "", "24H", "24h ")
        ),
        (
            GOOD | {"input_file_id": "wrong-id"},
            "Invalid 'input_file_id': 'wrong-id'. Expected an ID that begins with 'file'.",
            "input_file_id",
            "invalid_value",
        ),
        (
            GOOD | {"input_file_id": ""},
            "Invalid 'input_file_id': ''. Expected an ID that begins with 'file'.",
            "input_file_id",
            "invalid_value",
        ),
        (GOOD | {"input_file_id": "file-\0"}, None, "input_file_id", "invalid_value"),
        (GOOD | {"input_file_id": "file-../../etc"}, None, "input_file_id", "invalid_value"),
        (GOOD | {"input_file_id": "file-" + "a" * 9_999}, None, "input_file_id", "invalid_value"),
        (
            GOOD | {"metadata": {"tags": ["a"]}},
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
            "metadata.tags",
            "invalid_type",
        ),
        (
            GOOD | {"metadata": {"n": 1}},
            "Invalid type for 'metadata.n': expected a string, but got an integer instead.",
            "metadata.n",
            "invalid_type",
        ),
        (
            GOOD | {"metadata": {"n": None}},
            "Invalid type for 'metadata.n': expected a string, but got null instead.",
            "metadata.n",
            "invalid_type",
        ),
        (
            GOOD | {"metadata": "text"},
            "Invalid type for 'metadata': expected an object, but got a string instead.",
            "metadata",
            "invalid_type",
        ),
        (
            GOOD | {"metadata": {str(number): "" for number in range(17)}},
            (
                "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
                "but got an object with 17 properties instead."
            ),
            "metadata",
            "object_above_max_properties",
        ),
        (
            GOOD | {"metadata": {"k": "v" * 513}},
            (
                "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, "
                "but got a string with length 513 instead."
            ),
            "metadata.k",
            "string_above_max_length",
        ),
        (
            GOOD | {"metadata": {"k" * 65: "v"}},
            (
                "Invalid property name in 'metadata': string too long. "
                "Expected a string with maximum length 64, "
                "but got a string with length 65 instead."
            ),
            "metadata",
            "string_above_max_length",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": 3_599}},
            (
                "Invalid 'output_expires_after.seconds': integer below minimum value. "
                "Expected a value >= 3600, but got 3599 instead."
            ),
            "output_expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": 2_592_001}},
            (
                "Invalid 'output_expires_after.seconds': integer above maximum value. "
                "Expected a value <= 2592000, but got 2592001 instead."
            ),
            "output_expires_after.seconds",
            "integer_above_max_value",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": 10**400}},
            None,
            "output_expires_after.seconds",
            "integer_above_max_value",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": -(10**400)}},
            None,
            "output_expires_after.seconds",
            "integer_below_min_value",
        ),
        (GOOD | {"metadata": {"k" * 9_999: 5}}, None, "metadata." + "k" * 91 + "…", "invalid_type"),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": "3600"}},
            "Invalid type for 'output_expires_after.seconds': expected an integer, but got a string instead.",
            "output_expires_after.seconds",
            "invalid_type",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"seconds": 3_600.5}},
            (
                "Invalid type for 'output_expires_after.seconds': "
                "expected an integer, but got a decimal number instead."
            ),
            "output_expires_after.seconds",
            "invalid_type",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"anchor": "last_active_at"}},
            "Invalid value: 'last_active_at'. Supported values are: 'created_at'.",
            "output_expires_after.anchor",
            "invalid_value",
        ),
        (
            GOOD | {"output_expires_after": EXPIRES | {"anchor": 7}},
            "Invalid type for 'output_expires_after.anchor': expected a string, but got an integer instead.",
            "output_expires_after.anchor",
            "invalid_type",
        ),
        (
            GOOD | {"output_expires_after": {"seconds": 3_600}},
            "Missing required parameter: 'output_expires_after.anchor'.",
            "output_expires_after.anchor",
            "missing_required_parameter",
        ),
        (
            GOOD | {"output_expires_after": 3_600},
            "Invalid type for 'output_expires_after': expected an object, but got an integer instead.",
            "output_expires_after",
            "invalid_type",
        ),
    ],
)
def test_an_invalid_create_gets_openais_error_text(server, key, document, message, param, code):
    answer = server.send_json("/v1/batches", document, key=key)
    assert answer.status == 400
    assert "detail" not in answer.json()
    assert answer.error["type"] == "invalid_request_error"
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert message is None or answer.error["message"] == message
    assert len(answer.body) < 1_000
    assert server.send("GET", "/v1/batches", key=key).json()["data"] == []


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"endpoint": 5, "completion_window": "x", "metadata": []}, "input_file_id"),
        ({"input_file_id": "wrong", "endpoint": "x", "completion_window": 5}, "completion_window"),
        ({"input_file_id": "wrong", "endpoint": "x", "completion_window": "x"}, "endpoint"),
        (GOOD | {"input_file_id": "wrong", "metadata": {"a": 1}}, "metadata.a"),
        (GOOD | {"input_file_id": "wrong", "completion_window": "x"}, "completion_window"),
    ],
)
def test_missing_parameters_come_before_types_before_values_before_ids(server, key, document, param):
    assert server.send_json("/v1/batches", document, key=key).error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"{'a': 1}",
        b'{"a": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b"\x1f\x8b\x08\x00gzip",
        b"\x00",
        b'{"a": "\\ud83d"}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b"{} {}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_not_a_json_object_is_a_400(server, key, body):
    for headers in ({"Content-Type": "application/json"}, {}):
        answer = server.send("POST", "/v1/batches", body, headers, key=key)
        assert answer.status == 400
        assert answer.error["message"].startswith("We could not parse the JSON body of your request.")
        assert (answer.error["param"], answer.error["code"]) == (None, None)


@pytest.mark.parametrize("body", [None, b"", b"  \n"])
def test_an_empty_body_is_reported_as_missing_parameters(server, key, body):
    answer = server.send("POST", "/v1/batches", body, {"Content-Type": "application/json"}, key=key)
    assert answer.status == 400
    assert answer.error["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "a/b\t;c", "é"],
)
def test_another_content_type_is_refused(server, key, content_type):
    answer = server.send("POST", "/v1/batches", json.dumps(GOOD), {"Content-Type": content_type}, key=key)
    assert answer.status == 400
    assert answer.error["code"] == "unsupported_content_type"
    assert "only accepts 'application/json' requests" in answer.error["message"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json", ""],
)
def test_every_json_media_type_is_accepted(server, key, content_type):
    answer = server.send("POST", "/v1/batches", json.dumps(GOOD), {"Content-Type": content_type}, key=key)
    assert answer.status == 200


def test_a_body_over_the_limit_is_a_413_with_or_without_content_length(server, key):
    most = server.context.settings.api.max_json_bytes
    body = json.dumps(GOOD | {"metadata": {"a": "x" * most}}).encode()
    answer = server.send("POST", "/v1/batches", body, key=key)
    assert answer.status == 413
    text = f"Maximum content size limit ({most}) exceeded ({len(body)} bytes read)"
    assert answer.error["message"] == text
    assert answer.error["type"] == "server_error"
    pieces = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    headers = {"Transfer-Encoding": "chunked"}
    answer = server.send("POST", "/v1/batches", pieces, headers, key=key, chunked=True)
    assert answer.status == 413
    assert answer.error["message"].startswith(f"Maximum content size limit ({most}) exceeded (")


def test_a_chunked_body_is_read(server, key):
    pieces = (bytes([byte]) for byte in json.dumps(GOOD).encode())
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    assert server.send("POST", "/v1/batches", pieces, headers, key=key, chunked=True).status == 200


def test_a_body_that_does_not_arrive_is_a_408(serve):
    server = serve(settings={"api": {"upload_idle_s": 0.2}})
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 408
        assert json.load(response)["error"]["message"].startswith("The request body did not arrive")
        response.close()


def test_a_disconnect_within_a_body_does_not_affect_other_requests(server, key, caplog):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            "Content-Length: 9\r\n\r\n{".encode()
        )
    assert server.send("GET", "/v1/batches", key=key).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# --- paths and methods -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/foo"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/batches/batch_1/cancel/now"),
        ("GET", "/v1/batches/batch_1%2Fcancel%2Fnow"),
        ("DELETE", "/v2/batches"),
    ],
)
def test_an_unknown_path_is_named_in_the_error(server, key, method, path):
    answer = server.send(method, path, key=key)
    assert answer.status == 404
    shown = path.replace("%2F", "/")
    assert answer.error == {
        "message": f"Invalid URL ({method} {shown})",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_base_url_without_v1_is_named_as_the_cause(server, key):
    for path in ("/batches", "/files/file-1/content"):
        answer = server.send("GET", path, key=key)
        assert answer.status == 404
        assert answer.error["message"] == (
            f"Invalid URL (GET {path}). The API is under /v1: the base URL of a client must end in /v1."
        )


def test_a_malformed_path_is_an_unknown_path(server, key):
    for path in ("/v1/%00", "/v1/%ff%fe", "/v1/..%2f..%2fetc/passwd", "/v1/%0d%0aX-Evil:%201"):
        answer = server.send("GET", path, key=key)
        assert answer.status == 404
        assert answer.error["message"].startswith("Invalid URL (GET /v1/")
        assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "message", "allow"),
    [
        (
            "GET",
            "/v1/batches/batch_1/cancel",
            "Only POST requests are accepted.",
            "POST",
        ),
        ("DELETE", "/v1/batches/batch_1", "Only GET requests are accepted.", "GET"),
        ("PUT", "/v1/batches", "Only GET and POST requests are accepted.", "GET, POST"),
        ("OPTIONS", "/v1/batches", "Only GET and POST requests are accepted.", "GET, POST"),
        ("PATCH", "/v1/files/file-1", "Only GET and DELETE requests are accepted.", "GET, DELETE"),
        ("POST", "/health", "Only GET requests are accepted.", "GET"),
    ],
)
def test_a_wrong_method_gets_the_accepted_methods(server, key, method, path, message, allow):
    answer = server.send(method, path, key=key)
    assert answer.status == 405
    assert answer.error["message"] == message
    assert answer.error["code"] == "method_not_supported"
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/v1//batches", "//v1/batches", "/v1/batches/", "///v1///batches//"])
def test_doubled_and_trailing_slashes_are_served_without_a_redirect(server, key, path):
    answer = server.send("POST", path, json.dumps(GOOD), {"Content-Type": "application/json"}, key=key)
    assert answer.status == 200
    batch_id = answer.json()["id"]
    assert server.send("GET", f"{path}/{batch_id}//", key=key).json()["id"] == batch_id


def test_head_is_get_without_a_body(server, key):
    got = server.send("GET", "/v1/batches", key=key)
    head = server.send("HEAD", "/v1/batches", key=key)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(got.body))
    assert server.send("HEAD", "/health").status == 200
    for path, status in (("/v1/nowhere", 404), ("/v1/batches/batch_none", 404)):
        assert server.send("HEAD", path, key=key).status == status
    assert server.send("HEAD", "/v1/batches").status == 401


def test_head_of_a_download_sends_no_body_and_keeps_the_connection(server, key, client):
    file = client.files.create(file=("a.jsonl", b'{"custom_id": "a"}\n' * 100_000), purpose="batch")
    headers = {"Authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for _ in range(3):
        connection.request("HEAD", f"/v1/files/{file.id}/content", headers=headers)
        response = connection.getresponse()
        assert response.read() == b""
        assert response.status == 200
        assert response.getheader("content-length") == str(file.bytes)
    connection.close()


# --- headers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/batches"), ("GET", "/v1/nowhere"), ("PUT", "/v1/batches"), ("GET", "/health")],
)
def test_every_answer_has_openais_headers(server, key, method, path):
    first, second = (server.send(method, path, key=key).headers for _ in range(2))
    assert first["x-request-id"].startswith("req_")
    assert len(first["x-request-id"]) == 4 + 32
    assert first["x-request-id"] != second["x-request-id"]
    assert first["openai-version"] == "2020-10-01"
    assert int(first["openai-processing-ms"]) >= 0
    assert first["x-content-type-options"] == "nosniff"
    assert first["content-type"] == "application/json"


def test_the_official_client_sees_the_request_id(client):
    assert client.batches.list()._request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError) as caught:
        client.batches.retrieve("batch_none")
    assert caught.value.request_id.startswith("req_")


def test_additional_headers_of_clients_are_ignored(server, key):
    headers = {
        "OpenAI-Organization": "org-x",
        "OpenAI-Beta": "assistants=v2",
        "X-Stainless-Retry-Count": "1",
        "X-Request-Id": "mine\tand mine",
        "Accept": "application/binary",
        "Content-Type": "application/json",
        "User-Agent": "\xff",
    }
    answer = server.send("GET", "/v1/batches", headers=headers, key=key)
    assert answer.status == 200
    assert answer.headers["x-request-id"].startswith("req_")


def test_headers_over_the_limit_are_refused(server, key):
    with httpx2.Client(timeout=20) as http_client:
        answer = http_client.get(f"{server.url}/v1/batches", headers={"X-Long": "x" * 70_000})
    assert answer.status_code == 431
    assert answer.json()["error"]["type"] == "invalid_request_error"


# --- unexpected errors, and parts that are away ------------------------------------------------------------


def with_store(error):
    return lambda context: replace(context, store=broken_store(error))


def test_an_unexpected_error_is_a_500_without_details(serve, caplog):
    server = serve(change=with_store(RuntimeError("the secret prompt")))
    answer = server.send("GET", "/v1/batches")
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert answer.headers["x-request-id"] in answer.error["message"]
    assert "secret" not in answer.body.decode()
    assert answer.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert server.send("HEAD", "/v1/batches").status == 500


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("The store is away.", retry_after_s=7), 503),
        (StorageFullError("Full; make room, then try again."), 507),
    ],
)
def test_an_unavailable_dependency_gets_a_retry_after_header_and_says_so(serve, error, status):
    server = serve(change=with_store(error))
    answer = server.send("GET", "/v1/batches")
    assert answer.status == status
    said = str(error) if "again" in str(error) else "The store is away; try again in 7 s"
    assert answer.error == {"message": said, "type": "server_error", "param": None, "code": None}
    assert answer.headers["retry-after"] == str(error.retry_after_s)
    assert server.send("GET", "/ready").status == status
    assert server.send("GET", "/health").status == 200


def test_errors_of_the_files_service_have_the_sibling_detail(server, key):
    answer = server.send("GET", "/v1/files/file-none", key=key)
    assert answer.status == 404
    document = answer.json()
    assert document["detail"] == {"message": document["error"]["message"], "code": None}
    assert list(document) == ["error", "detail"]
