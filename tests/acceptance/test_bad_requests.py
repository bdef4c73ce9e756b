"""Invalid requests get a clear refusal, never a 5xx or a hang, leave no files, and disturb no client."""

import gzip
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from tests.acceptance.conftest import CHAT, Server, until

GOOD = {"input_file_id": "file-a", "endpoint": CHAT, "completion_window": "24h"}
JSON = {"Content-Type": "application/json"}
LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    b'"body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}}\n'
)


def form(*parts: bytes, boundary: bytes = b"xyz") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part for part in parts) + b"--" + boundary + b"--\r\n"


def field(name: bytes, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"


def file(content: bytes = LINE, *, name: bytes = b'filename="in.jsonl"') -> bytes:
    return b'Content-Disposition: form-data; name="file"; ' + name + b"\r\n\r\n" + content + b"\r\n"


PURPOSE = field(b"purpose", b"batch")


def post(path: bytes, body: bytes, *headers: bytes, content_type: bytes = b"application/json") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Type: " + content_type]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body


def post_form(body: bytes, *headers: bytes, boundary: bytes = b"xyz") -> bytes:
    return post(b"/v1/files", body, *headers, content_type=b"multipart/form-data; boundary=" + boundary)


@pytest.fixture(autouse=True)
def _no_files_are_left_and_the_server_still_works(server):
    before = server.blobs()
    yield
    assert server.send("GET", "/ready").status == 200
    until(lambda: server.blobs() <= before)
    assert "unexpected" not in server.log.read_text()


def refused(server: Server, request: bytes) -> int:
    """Sends the request, checks that it is refused with an error envelope, and returns the status."""
    answer = server.send_bytes(request)
    assert answer is not None
    assert 400 <= answer.status < 500, answer
    assert answer.error["message"]
    return answer.status


# --- forms --------------------------------------------------------------------------------------------

MALFORMED = {
    "no boundary": post(b"/v1/files", form(PURPOSE, file()), content_type=b"multipart/form-data"),
    "another boundary": post_form(form(PURPOSE, file()), boundary=b"other"),
    "no end": post_form(form(PURPOSE, file()).removesuffix(b"--\r\n")),
    "cut in the file": post_form(form(PURPOSE, file())[:-40]),
    "cut in a header": post_form(b"--xyz\r\nContent-Dispos"),
    "empty": post_form(b""),
    "only an end": post_form(b"--xyz--\r\n"),
    "no disposition": post_form(form(b"Content-Type: text/plain\r\n\r\nx\r\n", PURPOSE)),
    "no name": post_form(form(b"Content-Disposition: form-data\r\n\r\nx\r\n", PURPOSE)),
    "no blank line": post_form(b'--xyz\r\nContent-Disposition: form-data; name="file"\r\n--xyz--\r\n'),
    "nul in a header": post_form(
        form(b'Content-Disposition: form-data; na\0me="file"\r\n\r\nx\r\n', PURPOSE)
    ),
    "a header of 100 kB": post_form(form(b"X: " + b"y" * 100_000 + b"\r\n\r\nx\r\n", PURPOSE)),
    "no purpose": post_form(form(file())),
    "no file": post_form(form(PURPOSE)),
    "two files": post_form(form(PURPOSE, file(), file())),
    "purpose twice": post_form(form(PURPOSE, PURPOSE, file())),
    "purpose not utf-8": post_form(form(field(b"purpose", b"\xff\xfe"), file())),
    "purpose with nul": post_form(form(field(b"purpose", b"batch\0"), file())),
    "another purpose": post_form(form(field(b"purpose", b"world_domination"), file())),
    "bad expiry": post_form(form(PURPOSE, field(b"expires_after[seconds]", b"-1"), file())),
    "expiry with a dot": post_form(form(PURPOSE, field(b"expires_after.seconds", b"3600"), file())),
    "expiry without end": post_form(
        form(
            PURPOSE,
            field(b"expires_after[anchor]", b"created_at"),
            field(b"expires_after[seconds]", b"9" * 10_000),
            file(),
        )
    ),
    "a name of 10,000 letters": post_form(form(PURPOSE, file(name=b'filename="' + b"x" * 10_000 + b'"'))),
    "base64": post_form(
        form(PURPOSE, file().replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1))
    ),
    "a thousand parts": post_form(form(*[field(b"x%d" % number, b"y") for number in range(1_000)])),
    "json": post(b"/v1/files", b'{"purpose": "batch"}'),
    "plain": post(b"/v1/files", LINE, content_type=b"text/plain"),
    "urlencoded": post(b"/v1/files", b"purpose=batch", content_type=b"application/x-www-form-urlencoded"),
    "no type": post(b"/v1/files", LINE, content_type=b""),
    "gzip": post_form(form(PURPOSE, file(gzip.compress(LINE)))),
    "utf-16": post_form(form(PURPOSE, file(LINE.decode().encode("utf-16")))),
    "not utf-8": post_form(form(PURPOSE, file(b'{"custom_id": "\xff"}\n'))),
    "no json": post_form(form(PURPOSE, file(b"a,b,c\n1,2,3\n"))),
    "nothing in it": post_form(form(PURPOSE, file(b""))),
    "nul bytes": post_form(form(PURPOSE, file(bytes(1_000)))),
    "chunks that lie": post_form(b"5\r\n--xyz\r\nzz\r\n", b"Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_invalid_form_is_refused(server, name):
    assert refused(server, MALFORMED[name]) in {400, 413}


@pytest.mark.parametrize(
    "name",
    [
        b'filename="../../../etc/passwd"',
        rb'filename="C:\\windows\\x"',
        b'filename="/abs/olute"',
        b'filename="a%0D%0AX-Evil: yes"',
        b'filename="a\0b"',
        b"filename=\"x\"; filename*=UTF-8''..%2F..%2Fx%0d%0aX-Evil:%20yes",
        b"filename=" + b"..",
        b'filename=""',
        b'filename="' + "ü\u2028\u202e".encode() + b'"',
        b'filename="\xff\xfe"',
        b'filename="<script>alert(1)</script>\' OR 1=1; --"',
    ],
)
def test_a_filename_is_never_used_as_a_path_or_a_header(server, name):
    before = server.blobs()
    answer = server.send_bytes(post_form(form(PURPOSE, file(name=name))))
    assert answer is not None
    if answer.status == 400:
        assert answer.error
        return
    made = answer.json()
    assert server.blobs() - before == {f"files/{made['id']}"}
    sent = server.send("GET", f"/v1/files/{made['id']}/content")
    assert (sent.status, sent.body) == (200, LINE)
    assert "x-evil" not in sent.headers
    assert "/" not in sent.headers["content-disposition"]
    assert "\0" not in sent.headers["content-disposition"]
    assert server.send("GET", f"/v1/files/{made['id']}").json()["filename"] == made["filename"]
    assert server.send("DELETE", f"/v1/files/{made['id']}").status == 200


@pytest.mark.parametrize(
    "body",
    [
        form(file(), PURPOSE),
        form(PURPOSE, file()).removesuffix(b"\r\n"),
        form(
            b"Content-Type: text/plain\r\ncontent-disposition:form-data;name=purpose\r\n\r\nbatch\r\n",
            b"Content-Type:\r\nContent-Disposition: form-data; name=file; filename=in.jsonl; "
            b"filename*=utf-8''in.jsonl\r\n\r\n" + LINE + b"\r\n",
        ),
        b"preamble\r\n" + form(field(b"unknown", b"x"), PURPOSE, file()) + b"epilogue",
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_forms_of_real_clients_are_accepted(server, body, is_chunked):
    if is_chunked:
        pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
        text = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        answer = server.send_bytes(post_form(text, b"Transfer-Encoding: chunked"))
    else:
        answer = server.send_bytes(post_form(body))
    assert answer is not None
    assert answer.status == 200, answer.body
    assert answer.json()["filename"] == "in.jsonl"
    assert server.send("DELETE", f"/v1/files/{answer.json()['id']}").status == 200


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_an_aborted_upload_leaves_no_files(server, how):
    started = server.blobs()
    body = form(PURPOSE, file(LINE * 20_000))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(post_form(body, b"Content-Length: %d" % len(body))[: 1 << 20])
        until(lambda: server.blobs() > started)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half closed":
            connection.shutdown(socket.SHUT_WR)
            until(lambda: server.blobs() == started)
    until(lambda: server.blobs() == started)


def test_a_slow_upload_is_aborted_and_disturbs_no_other_client(serve):
    server = serve("--emulate", environment={"NIGHTMILL_API__UPLOAD_IDLE_S": "0.5"})
    body = form(PURPOSE, file(LINE * 20_000))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(post_form(body)[: 1 << 20])
        until(lambda: server.blobs("files") or server.blobs())
        assert server.send("GET", "/v1/batches").status == 200
        answer = connection.recv(100)
    assert answer.startswith(b"HTTP/1.1 408 ")
    until(lambda: not server.blobs())


# --- JSON bodies, queries, paths ----------------------------------------------------------------------

TYPES: list[Any] = [
    0,
    -1,
    1.5,
    True,
    None,
    "",
    "x",
    "\0",
    "\u2028",
    [],
    [[]],
    {},
    {"a": 1},
    10**400,
    "x" * 9_999,
]


@pytest.mark.parametrize("name", [*GOOD, "metadata", "output_expires_after"])
def test_a_field_of_the_wrong_type_is_refused(server, name):
    for value in TYPES:
        answer = server.send("POST", "/v1/batches", json.dumps(GOOD | {name: value}), JSON)
        if answer.status == 200:
            assert name in {"metadata", "output_expires_after"}, value
            server.send("POST", f"/v1/batches/{answer.json()['id']}/cancel")
        else:
            assert answer.status == 400, value
            assert answer.error["param"], value


@pytest.mark.parametrize("name", ["bytes", "filename", "mime_type", "purpose", "expires_after"])
def test_an_upload_field_of_the_wrong_type_is_refused(server, name):
    good = {"bytes": 1, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
    for value in [*TYPES, 1 << 63, 1 << 33, "../x", "a\r\nb"]:
        answer = server.send("POST", "/v1/uploads", json.dumps(good | {name: value}), JSON)
        if answer.status == 200:
            assert answer.json()["object"] == "upload"
        else:
            assert (answer.status, bool(answer.error["param"])) == (400, True), value
    upload = server.send("POST", "/v1/uploads", json.dumps(good), JSON).json()
    for value in [*TYPES, ["part_x"], ["part_x"] * 20_000]:
        document = json.dumps({"part_ids": value})
        answer = server.send("POST", f"/v1/uploads/{upload['id']}/complete", document, JSON)
        assert answer.status == 400, value
        answer = server.send(
            "POST", f"/v1/uploads/{upload['id']}/complete", json.dumps({"part_ids": [], "md5": value}), JSON
        )
        assert answer.status == 400, value


BODIES = {
    "nothing": b"",
    "no json": b"{",
    "an array": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "nan": b'{"metadata": NaN}',
    "not utf-8": b'{"input_file_id": "\xff"}',
    "utf-16": json.dumps(GOOD).encode("utf-16"),
    "nul": b'{"input_file_id": "file-\0"}',
    "a lone surrogate": json.dumps(GOOD | {"metadata": {"a": "\ud83d"}}).encode(),
    "a thousand levels": b'{"metadata": ' * 1_000 + b"1" + b"}" * 1_000,
    "half a million levels": b"[" * 500_000 + b"]" * 500_000,
    "a number of 100,000 digits": b'{"metadata": %s}' % (b"9" * 100_000),
    "gzip": gzip.compress(json.dumps(GOOD).encode()),
    "two documents": json.dumps(GOOD).encode() * 2,
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [b"/v1/batches", b"/v1/uploads"])
def test_a_body_that_is_not_a_json_object_is_refused(server, path, name):
    assert refused(server, post(path, BODIES[name])) == 400


@pytest.mark.parametrize(
    "content_type",
    [b"text/plain", b"multipart/form-data; boundary=x", b"application/x-ndjson", b"\xff", b"a" * 5_000],
)
def test_another_content_type_is_refused(server, content_type):
    assert refused(server, post(b"/v1/batches", json.dumps(GOOD).encode(), content_type=content_type)) == 400


def test_a_body_of_two_megabytes_is_refused(server):
    body = json.dumps(GOOD | {"metadata": {"a": "x" * (2 << 20)}}).encode()
    assert refused(server, post(b"/v1/batches", body)) == 413
    announced = post(b"/v1/batches", b"{}", b"Content-Length: 99999999999999999999")
    assert refused(server, announced) in {400, 413}


@pytest.mark.parametrize("limit", ["-1", "0", "101", "1e2", "", "x", "9" * 5_000, "\0", "१", "١٠", "0x10"])
def test_an_invalid_limit_is_named_in_the_error(server, limit):
    for path in ("/v1/batches", "/v1/files"):
        if path == "/v1/files" and limit == "101":
            continue
        answer = server.send("GET", f"{path}?limit={quote(limit)}")
        assert (answer.status, answer.error["param"]) == (400, "limit")
    assert server.send("GET", "/v1/files?limit=10001").error["code"] == "integer_above_max_value"


@pytest.mark.parametrize(
    "cursor",
    ["batch_none", "file-none", "x", "%00", "..%2F..", "%FF", "a" * 3_000, "'%20OR%201=1", "%F0%9F%98%80"],
)
def test_an_unknown_cursor_is_refused(server, cursor):
    for path in ("/v1/batches", "/v1/files"):
        answer = server.send("GET", f"{path}?after={cursor}")
        assert (answer.status, answer.error["param"]) == (404, "after")


@pytest.mark.parametrize(
    "odd",
    [
        "..",
        "../..",
        "%2e%2e%2f",
        "a%00b",
        "%FF%FE",
        "a%0d%0aX-Evil:%20yes",
        "a" * 4_000,
        "%",
        "%zz",
        "';--",
        "é",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/batches/batch_{}"),
        ("POST", "/v1/batches/batch_{}/cancel"),
        ("GET", "/v1/files/file-{}"),
        ("GET", "/v1/files/file-{}/content"),
        ("DELETE", "/v1/files/file-{}"),
        ("POST", "/v1/uploads/upload_{}/cancel"),
        ("GET", "/v1/models/{}"),
        ("GET", "/{}"),
    ],
)
def test_an_unusual_path_is_an_unknown_path(server, method, path, odd):
    target = path.format(odd).encode()
    answer = server.send_bytes(
        method.encode() + b" " + target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )
    assert answer is not None
    assert answer.status in {400, 404}
    assert "x-evil" not in answer.headers
    if answer.status == 404:
        assert answer.error["message"]


RAW = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "no version": b"GET /v1/batches\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "negative length": post(b"/v1/batches", b"{}", b"Content-Length: -1"),
    "two lengths": post(b"/v1/batches", b"{}", b"Content-Length: 2", b"Content-Length: 3"),
    "length and chunks": post(
        b"/v1/batches", b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"
    ),
    "bad chunk": post(b"/v1/batches", b"zz\r\n{}\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "endless chunk": post(b"/v1/batches", b"ffffffffffffffffff\r\n{}", b"Transfer-Encoding: chunked"),
    "header without a name": b"GET /v1/batches HTTP/1.1\r\n: x\r\n\r\n",
    "nul in a header": b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "folded header": b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    "a header of 1 MB": b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\nX: "
    + b"a" * (1 << 20)
    + b"\r\n\r\n",
    "a path of 1 MB": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "10,000 headers": b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    "absolute form": b"GET http://evil.test/v1/batches HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "connect": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "upgrade": b"GET /v1/batches HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_not_a_request_are_refused_or_the_connection_is_closed(server, name):
    answer = server.send_bytes(RAW[name], half_close=True)
    assert (
        answer is None
        or 400 <= answer.status < 500
        or (name in {"folded header", "nul in a header", "10,000 headers"})
    )


@pytest.mark.parametrize("key", ["", "x" * 300, "a\x7fb", "ключ".encode().decode("latin-1")])
def test_an_unusual_idempotency_key_is_refused_or_stored(server, key):
    headers = JSON | {"Idempotency-Key": key}
    answer = server.send("POST", "/v1/batches", json.dumps(GOOD), headers)
    assert answer.status in {200, 400}


# --- tolerance ----------------------------------------------------------------------------------------


def test_unusual_but_harmless_requests_are_served(server):
    answer = server.send("POST", "/v1//batches/", json.dumps(GOOD | {"unknown": 1}), JSON)
    assert answer.status == 200
    batch_id = answer.json()["id"]
    for body, headers in [(None, {}), (b"", JSON), (b"{}", JSON), (b"", {})]:
        answer = server.send("POST", f"/v1/batches/{batch_id}/cancel/", body, headers)
        assert answer.status in {200, 409}
    encoded = batch_id.replace("_", "%5F")
    assert server.send("GET", f"/v1/batches/{encoded}", headers=JSON).json()["id"] == batch_id
    made = server.client().files.create(file=LINE, purpose="batch").id
    sent = server.send("HEAD", f"/v1/files/{made}/content")
    assert (sent.body, sent.headers["content-length"]) == (b"", str(len(LINE)))
    for accept in ("application/binary", "application/octet-stream", "text/plain", "*/*", "nonsense"):
        sent = server.send("GET", f"/v1/files/{made}/content", headers={"Accept": accept})
        assert (sent.status, sent.body) == (200, LINE)
        assert "content-encoding" not in sent.headers
    for name in ("x-request-id", "openai-processing-ms", "openai-version", "x-content-type-options"):
        assert name in sent.headers
    server.client().files.delete(made)


def test_a_connection_still_works_after_a_refusal(server):
    """The refused request does not disturb the framing of the next one."""
    bad = post(b"/v1/batches", b"{")
    good = b"GET /v1/batches HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(bad + good)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    assert received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in received
    assert b"HTTP/1.1 200 " in received


def test_many_concurrent_bad_requests_disturb_no_other_client(server):
    with ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(lambda name: server.send_bytes(MALFORMED[name]), [*MALFORMED] * 5))
    assert all(answer is None or answer.status < 500 for answer in statuses)
    assert server.send("GET", "/v1/batches").status == 200
