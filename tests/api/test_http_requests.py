"""Requests written byte by byte: a lawful request is read whole, and every other one is refused clearly."""

import gzip
import json
import zlib

import pytest

from tests.api.conftest import LINE, Answer, Server

CREATE = json.dumps(
    {"input_file_id": "file-a", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
).encode()
FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n%s\r\n'
    b"--xyz--\r\n"
)
LARGE = LINE.encode() * 20_000
JSON = "Content-Type: application/json"
MULTIPART = "Content-Type: multipart/form-data; boundary=xyz"
CHUNKED = "Transfer-Encoding: chunked"
UPGRADES = {
    "h2c": (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    ),
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "several": ("Connection: upgrade", "Upgrade: TLS/1.0, foo/2"),
    "two headers": ("Connection: upgrade", "Upgrade: foo", "upgrade: h2c"),
}


def head(request_line: str, key: str, *headers: str) -> bytes:
    lines = [request_line, "Host: localhost", f"Authorization: Bearer {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def with_length(request_line: str, key: str, *headers: str, body: bytes = CREATE) -> bytes:
    return head(request_line, key, *headers, f"Content-Length: {len(body)}") + body


def chunks(body: bytes, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
    framed = (b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    return b"".join(framed) + b"0\r\n" + trailers + b"\r\n"


def exchanged(server: Server, sent: bytes) -> Answer:
    """The response. A second request right behind the first one must be answered too."""
    with server.connected() as connection:
        connection.send(sent + b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Behind: 1\r\n\r\n")
        answer = connection.read()
        assert "version" in connection.read().json()
    return answer


def created(answer: Answer) -> bool:
    return answer.status == 200 and answer.json()["input_file_id"] == "file-a"


def content_of(server: Server, key: str, uploaded: Answer) -> bytes:
    assert uploaded.status == 200, uploaded.body
    return server.send("GET", f"/v1/files/{uploaded.json()['id']}/content", key=key).body


def refused(server: Server, sent: bytes) -> Answer:
    """The refusal, after which the connection closes or goes on."""
    with server.connected() as connection:
        connection.send(sent)
        answer = connection.read()
    assert answer.error["type"] == "invalid_request_error"
    return answer


# --- Upgrade -------------------------------------------------------------------------------------------


@pytest.fixture(params=UPGRADES.values(), ids=UPGRADES.keys())
def upgrade(request) -> tuple[str, ...]:
    return request.param


def test_a_json_body_with_an_offer_to_upgrade_is_read(server, key, upgrade):
    assert created(exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, JSON, *upgrade)))


def test_a_get_with_an_offer_to_upgrade_is_answered(server, key, upgrade):
    answer = exchanged(server, head("GET /v1/batches HTTP/1.1", key, *upgrade))
    assert answer.json()["object"] == "list"


@pytest.mark.parametrize("content", [LINE.encode(), LARGE], ids=["small", "large"])
def test_an_upload_with_an_offer_to_upgrade_is_read(server, key, upgrade, content):
    sent = with_length("POST /v1/files HTTP/1.1", key, MULTIPART, *upgrade, body=FORM % content)
    assert content_of(server, key, exchanged(server, sent)) == content


def test_chunks_with_an_offer_to_upgrade_are_read(server, key, upgrade):
    sent = head("POST /v1/files HTTP/1.1", key, MULTIPART, CHUNKED, *upgrade) + chunks(FORM % LINE.encode())
    assert content_of(server, key, exchanged(server, sent)) == LINE.encode()


def test_an_upload_part_with_an_offer_to_upgrade_is_read(server, key, client, upgrade):
    upload = client.uploads.create(
        bytes=len(LINE), filename="in.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    form = (FORM % LINE.encode()).replace(b'name="file"', b'name="data"')
    path = f"/v1/uploads/{upload.id}/parts"
    part = exchanged(server, with_length(f"POST {path} HTTP/1.1", key, MULTIPART, *upgrade, body=form))
    done = client.uploads.complete(upload.id, part_ids=[part.json()["id"]])
    assert client.files.content(done.file.id).content == LINE.encode()


def test_a_body_with_an_offer_to_upgrade_may_wait_for_100_continue(server, key, upgrade):
    length = f"Content-Length: {len(CREATE)}"
    sent = head("POST /v1/batches HTTP/1.1", key, JSON, *upgrade, length, "Expect: 100-continue")
    with server.connected() as connection:
        connection.send(sent)
        assert connection.read().status == 100
        connection.send(CREATE)
        assert created(connection.read())


def test_every_request_of_a_connection_may_offer_to_upgrade(server, key, upgrade):
    sent = with_length("POST /v1/batches HTTP/1.1", key, JSON, *upgrade)
    with server.connected() as connection:
        connection.send(sent * 3)
        assert all(created(connection.read()) for _ in range(3))


def test_a_request_with_an_offer_to_upgrade_may_arrive_byte_by_byte(server, key, upgrade):
    with server.connected() as connection:
        for byte in with_length("POST /v1/batches HTTP/1.1", key, JSON, *upgrade):
            connection.send(bytes([byte]))
        assert created(connection.read())


@pytest.mark.parametrize("target", ["localhost:443", "/v1/batches"])
def test_connect_is_a_405(server, key, target):
    assert refused(server, head(f"CONNECT {target} HTTP/1.1", key)).status == 405


def test_the_preface_of_http_2_is_refused(server):
    with server.connected() as connection:
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        answer = connection.read()
        assert connection.is_closed()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert "HTTP/1.1" in answer.error["message"]


# --- expectations and codings --------------------------------------------------------------------------


def test_an_unknown_expectation_is_a_417(server, key):
    answer = refused(server, with_length("POST /v1/batches HTTP/1.1", key, JSON, "Expect: 200-ok"))
    assert (answer.status, answer.error["param"]) == (417, "Expect")


def test_http_1_0_gets_no_interim_response(server, key):
    with server.connected() as connection:
        connection.send(with_length("POST /v1/batches HTTP/1.0", key, JSON, "Expect: 100-continue"))
        assert created(connection.read())
        assert connection.is_closed()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(CREATE, mtime=0)),
        ("deflate", zlib.compress(CREATE)),
        ("identity, GZIP", gzip.compress(CREATE, mtime=0)),
        ("br", b"\x00"),
        ("unknown", CREATE),
    ],
)
def test_a_compressed_body_is_a_415(server, key, coding, body):
    header = f"Content-Encoding: {coding}"
    answer = exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, JSON, header, body=body))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "identity"


def test_a_compressed_upload_is_a_415(server, key):
    body = gzip.compress(FORM % LARGE)
    gzipped = "Content-Encoding: gzip"
    sent = with_length("POST /v1/files HTTP/1.1", key, MULTIPART, gzipped, body=body)
    assert exchanged(server, sent).status == 415
    sent = head("POST /v1/files HTTP/1.1", key, MULTIPART, gzipped, CHUNKED) + chunks(body)
    assert exchanged(server, sent).status == 415


@pytest.mark.parametrize("value", ["identity", "Identity", ""])
def test_a_body_that_is_declared_uncompressed_is_read(server, key, value):
    header = f"Content-Encoding: {value}"
    assert created(exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, JSON, header)))


def test_a_content_encoding_without_a_body_is_ignored(server, key):
    assert exchanged(server, head("GET /v1/batches HTTP/1.1", key, "Content-Encoding: gzip")).status == 200


@pytest.mark.parametrize(
    "headers", [("Transfer-Encoding: gzip, chunked",), ("Transfer-Encoding: gzip", CHUNKED)]
)
def test_another_transfer_coding_is_a_501(server, key, headers):
    body = chunks(gzip.compress(CREATE))
    answer = exchanged(server, head("POST /v1/batches HTTP/1.1", key, JSON, *headers) + body)
    assert (answer.status, answer.error["param"]) == (501, "Transfer-Encoding")


@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: chunked, gzip",),
        ("Transfer-Encoding:", "Content-Length: 5"),
        (CHUNKED, "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: 5, 5",),
        ("Content-Length: +5",),
        ("Content-Length:",),
    ],
)
def test_an_ambiguous_length_is_refused_and_closes_the_connection(server, key, headers):
    with server.connected() as connection:
        connection.send(head("POST /v1/batches HTTP/1.1", key, JSON, *headers) + b"5\r\n{}   \r\n0\r\n\r\n")
        answer = connection.read()
        assert connection.is_closed()
    assert answer.status == 400
    assert "Invalid HTTP request" not in answer.error["message"], "the message names the header"


def test_extensions_and_trailers_of_chunks_are_ignored(server, key):
    trailers = b"Content-Type: text/plain\r\nAuthorization: Bearer x\r\nExpect: nothing\r\nX-Sum: 1\r\n"
    body = chunks(CREATE, extension=b';name="a;b";flag', trailers=trailers)
    assert created(exchanged(server, head("POST /v1/batches HTTP/1.1", key, JSON, CHUNKED) + body))


# --- request targets and header fields -----------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost/v1/batches",
        "HTTPS://localhost:8443/v1/batches?x=1",
        "/%76%31/batches",
        "//v1/batches/",
    ],
)
def test_every_form_of_a_target_is_read(server, key, target):
    assert created(exchanged(server, with_length(f"POST {target} HTTP/1.1", key, JSON)))


@pytest.mark.parametrize("target", ["http://localhost", "http://localhost?x=1", "*"])
def test_a_target_without_a_path_is_an_unknown_url(server, key, target):
    assert exchanged(server, head(f"OPTIONS {target} HTTP/1.1", key)).status in {404, 405}


def test_the_host_of_an_absolute_target_replaces_the_host_header(serve):
    """A server without keys answers only requests to a loopback host."""
    keyless = serve()
    assert keyless.send("GET", "http://localhost/v1/batches").status == 200
    assert keyless.send("GET", "http://example.com/v1/batches", headers={"Host": "localhost"}).status == 401


def test_a_url_over_64_kib_is_a_414(serve):
    server = serve(settings={"api": {"max_header_bytes": 1 << 20}})
    assert server.send("GET", "/v1/batches?x=" + "y" * 60_000).status == 200
    answer = server.send("GET", "/v1/batches?x=" + "y" * 70_000)
    assert (answer.status, answer.error["code"]) == (414, None)


@pytest.mark.parametrize(
    "request_line",
    ["post /v1/batches HTTP/1.1", "GET v1/batches HTTP/1.1", "GET /v1/ü HTTP/1.1", "GET http:// HTTP/1.1"],
)
def test_a_malformed_request_line_is_refused(server, key, request_line):
    assert refused(server, head(request_line, key)).status == 400


@pytest.mark.parametrize("name", ["Content-Type", "Authorization", "Host", "Idempotency-Key", "api-key"])
def test_a_repeated_header_with_two_values_is_refused(server, key, name):
    twice = (f"{name}: application/json", f"{name.upper()}: text/plain")
    answer = exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, *twice))
    assert (answer.status, answer.error["code"]) == (400, "duplicate_parameter")


def test_a_repeated_header_with_the_same_value_is_accepted(server, key):
    again = f"authorization: Bearer {key}"
    assert created(exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, JSON, JSON, again)))


def test_names_in_any_case_and_empty_values_are_accepted(server, key):
    odd = (
        "cONTENT-tYPE: APPLICATION/JSON; Charset=UTF-8",
        "X-Empty:",
        "Expect:",
        "Upgrade:",
        "OpenAI-Project: ",
    )
    assert created(exchanged(server, with_length("POST /v1/batches HTTP/1.1", key, *odd)))


@pytest.mark.parametrize(
    "headers",
    [("Content-Type:\r\n application/json",), ("X-A: b\r\n\tc", JSON), ("Content-Type : text/plain",)],
)
def test_folded_headers_and_spaces_before_a_colon_are_refused(server, key, headers):
    assert refused(server, with_length("POST /v1/batches HTTP/1.1", key, *headers)).status == 400


def test_lines_that_end_in_a_line_feed_only_are_refused(server, key):
    sent = head("GET /v1/batches HTTP/1.1", key).replace(b"\r\n", b"\n")
    assert refused(server, sent).status == 400


def test_empty_lines_around_a_request_are_skipped(server, key):
    assert created(
        exchanged(server, b"\r\n\r\n" + with_length("POST /v1/batches HTTP/1.1", key, JSON) + b"\r\n")
    )


# --- the end of a connection ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", [LINE.encode(), LARGE], ids=["small", "large"])
def test_a_client_may_end_its_side_after_its_requests(server, key, content):
    sent = with_length("POST /v1/files HTTP/1.1", key, MULTIPART, body=FORM % content)
    with server.connected() as connection:
        connection.send(sent + head("GET /v1/files HTTP/1.1", key))
        connection.end_of_sending()
        uploaded = connection.read()
        assert connection.read().json()["data"][0]["id"] == uploaded.json()["id"]
        assert connection.is_closed()
    assert content_of(server, key, uploaded) == content


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_sends_connection_close_gets_its_response(server, key, version):
    with server.connected() as connection:
        connection.send(with_length(f"POST /v1/batches HTTP/{version}", key, JSON, "Connection: close"))
        assert created(connection.read())
        assert connection.is_closed()
