"""The files service, through the official client and with raw, unusual and hostile requests."""

import gzip
import io
import itertools
import json
import secrets
import socket
import time
from functools import partial
from pathlib import Path

import openai
import pytest

from tests.store_doubles import with_verb

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
FILE_KEYS = [
    "object", "id", "purpose", "filename", "bytes", "created_at", "expires_at", "status", "status_details",
]  # fmt: skip
MONTH_S = 2_592_000
FORM = {"Content-Type": "multipart/form-data; boundary=bound"}


def part(disposition, content, *headers):
    lines = ["--bound", f"Content-Disposition: form-data; {disposition}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n"


def form(*, content=LINE, purpose="batch", filename="in.jsonl", **texts):
    """File first: what a streaming reader finds hardest."""
    pieces = [part(f'name="file"; filename="{filename}"', content)]
    if purpose is not None:
        pieces.append(part('name="purpose"', purpose.encode()))
    pieces += [part(f'name="{name}"', text.encode()) for name, text in texts.items()]
    return b"".join(pieces) + b"--bound--\r\n"


def post(server, key, body, headers=FORM, **how):
    return server.send("POST", "/v1/files", body, headers, key=key, **how)


def blobs_of(server):
    return {
        str(path.relative_to(server.folder / "blobs"))
        for path in server.folder.glob("blobs/**/*")
        if path.is_file()
    }


def eventually(is_so, within_s=10.0):
    """For what a server does after the client has gone: there is no answer to wait for."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- create --------------------------------------------------------------------------------------------


def test_a_downloaded_file_equals_the_uploaded_file(client):
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    assert client.files.content(file.id).content == LINE
    assert client.files.retrieve(file.id) == file


def test_a_new_file_has_every_published_key_in_order(server, key):
    before = int(time.time())
    answer = post(server, key, form())
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    file = answer.json()
    assert list(file) == FILE_KEYS
    assert file["id"].startswith("file-")
    assert len(file["id"]) == len("file-") + 22
    assert (file["object"], file["purpose"], file["filename"]) == ("file", "batch", "in.jsonl")
    assert (file["bytes"], file["status"], file["status_details"]) == (len(LINE), "processed", None)
    assert before <= file["created_at"] <= time.time()
    assert file["expires_at"] == file["created_at"] + MONTH_S


@pytest.mark.parametrize(
    ("given", "filename"),
    [
        (LINE, "upload"),
        (io.BytesIO(LINE), "upload"),
        (("a name.jsonl", LINE), "a name.jsonl"),
        (("你好.jsonl", LINE, "application/jsonl"), "你好.jsonl"),
        (('a"b.jsonl', io.BytesIO(LINE)), 'a"b.jsonl'),
        (("no-extension", LINE, ""), "no-extension"),
    ],
)
def test_the_official_client_may_send_a_file_in_any_form(client, given, filename):
    file = client.files.create(file=given, purpose="batch")
    assert file.filename == filename
    assert client.files.content(file.id).content == LINE


def test_the_official_client_may_send_a_path(client, tmp_path):
    path = tmp_path / "on-disk.jsonl"
    path.write_bytes(LINE)
    assert client.files.create(file=path, purpose="batch").filename == "on-disk.jsonl"
    with Path(path).open("rb") as opened:
        assert client.files.create(file=opened, purpose="batch").filename == "on-disk.jsonl"


def test_a_chunked_body_without_a_length_is_accepted(server, key):
    body = form()
    pieces = (body[start : start + 7] for start in range(0, len(body), 7))
    answer = post(server, key, pieces, {**FORM, "Transfer-Encoding": "chunked"}, chunked=True)
    assert (answer.status, answer.json()["bytes"]) == (200, len(LINE))


@pytest.mark.parametrize("purpose", ["fine-tune", "assistants", "user_data", "vision", "evals"])
def test_other_purposes_hold_any_bytes_and_never_expire(client, purpose):
    file = client.files.create(file=("x", b"\x00\xff"), purpose=purpose)
    assert (file.purpose, file.expires_at, file.bytes) == (purpose, None, 2)


def test_an_empty_file_of_another_purpose_is_accepted(client):
    file = client.files.create(file=("x", b""), purpose="evals")
    assert file.bytes == 0
    assert client.files.content(file.id).content == b""


def test_an_unknown_purpose_gets_openais_error_text(server, key):
    answer = post(server, key, form(purpose="world_domination"))
    assert answer.status == 400
    message = (
        "'world_domination' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', "
        "'evals'] - 'purpose'"
    )
    assert answer.json() == {
        "error": {"message": message, "type": "invalid_request_error", "param": "purpose", "code": None},
        "detail": {"message": message, "code": None},
    }


def test_the_purpose_of_batch_results_is_refused_for_uploads(server, key):
    assert post(server, key, form(purpose="batch_output")).error["param"] == "purpose"


def test_a_missing_file_or_purpose_is_named_in_the_error(server, key):
    before = blobs_of(server)
    answer = post(server, key, form(purpose=None))
    assert answer.error["message"] == "Missing required parameter: 'purpose'."
    assert (answer.error["param"], answer.error["code"]) == ("purpose", "missing_required_parameter")
    answer = post(server, key, part('name="purpose"', b"batch") + b"--bound--")
    assert answer.error["message"] == "Missing required parameter: 'file'."
    assert blobs_of(server) == before


def test_unknown_form_fields_are_ignored(server, key):
    assert post(server, key, form(whatever="1")).status == 200


# --- what a batch's input looks like --------------------------------------------------------------------


NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"
IS_UTF16 = f"{NOT_UTF8}. The file is UTF-16 text."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NOT_JSONL),
        (b"\n \r\n", NOT_JSONL),
        (b"hello\n", NOT_JSONL),
        (b'[\n{"custom_id": "a"}\n]', NOT_JSONL),
        (b"{'custom_id': 'a'}\n", NOT_JSONL),
        (b'{"a": 1} trailing\n', NOT_JSONL),
        (b"plain " * 20_000, NOT_JSONL),
        (gzip.compress(LINE, mtime=0), f"{NOT_JSONL}. The file is gzip data."),
        (b"PK\x03\x04" + bytes(100), f"{NOT_JSONL}. The file is a zip archive."),
        (b"\x28\xb5\x2f\xfd" + LINE, f"{NOT_JSONL}. The file is zstd data."),
        (b"{\x00}\n", NOT_JSONL),
        (LINE[:-1] + b"\x00\n", NOT_JSONL),
        (LINE.decode().encode("utf-16"), IS_UTF16),
        (LINE.decode().encode("utf-16-le"), IS_UTF16),
        (LINE.decode().encode("utf-16-be"), IS_UTF16),
        (b"\xfe\xff" + LINE.decode().encode("utf-16-be"), IS_UTF16),
        (LINE.decode().encode("utf-32"), f"{NOT_UTF8}. The file is UTF-32 text."),
        (LINE.decode().encode("utf-32-be"), f"{NOT_UTF8}. The file is UTF-32 text."),
        (LINE + b"\xff\n", NOT_UTF8),
        (b'{"a": "\xe4"}\n', NOT_UTF8),
        ('{"a": "ä"}'.encode()[:-3], NOT_UTF8),
    ],
)
def test_a_file_that_cannot_be_batch_input_is_refused(server, key, content, message):
    before = blobs_of(server)
    answer = post(server, key, form(content=content))
    assert answer.status == 400
    assert (answer.error["message"], answer.error["param"], answer.error["code"]) == (message, None, None)
    assert answer.json()["detail"] == {"message": message, "code": None}
    assert blobs_of(server) == before


@pytest.mark.parametrize(
    "content",
    [
        LINE.rstrip(),
        LINE + b"garbage\n",
        b"{}\n",
        b"\xef\xbb\xbf" + LINE,
        b"\r\n\n  \n" + LINE,
        LINE.replace(b"\n", b"\r\n"),
        b'{"a": "\\ud83d", "n": 1e400, "big": 123456789012345678901234567890}\n',
        b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}\n",
        b'{"a": "' + "ä".encode() * 100_000 + b'"}\n',
        b'{"aa": "' + "ä".encode() * 100_000 + b'"}\n',
        b"\n" * 100_000 + LINE,
        b" " * 65_536 + LINE,
    ],
)
def test_a_file_that_may_be_batch_input_is_accepted_and_left_to_intake(server, key, content):
    assert post(server, key, form(content=content)).status == 200


def test_batch_input_over_the_limit_is_refused_for_any_order_of_fields(serve):
    server = serve(settings={"limits": {"input_file_bytes": 1_000, "file_bytes": 5_000}})
    content = LINE * 20
    late = form(content=content)
    early = part('name="purpose"', b"batch") + form(content=content, purpose=None)
    for body in (late, early):
        answer = post(server, None, body)
        assert (answer.status, answer.error["message"]) == (400, "File is too large.")
        assert answer.json()["detail"]["message"] == "File is too large."
    assert post(server, None, form(content=content, purpose="evals")).status == 200
    assert post(server, None, form(content=b"{}\n" + b"x" * 4_998, purpose="evals")).status == 400
    assert len(blobs_of(server)) == 1


# --- expires_after ---------------------------------------------------------------------------------------


def test_the_official_client_can_set_the_expiry_of_a_file(client):
    file = client.files.create(
        file=LINE, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    assert file.expires_at == file.created_at + 3_600


@pytest.mark.parametrize(
    "texts",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"},
        {"expires_after": '{"anchor": "created_at", "seconds": 7200}'},
    ],
)
def test_an_expiry_is_accepted_in_brackets_and_as_json(server, key, texts):
    file = post(server, key, form(purpose="evals", **texts)).json()
    assert file["expires_at"] == file["created_at"] + 7_200


JSON = "expires_after"
SECONDS = "expires_after[seconds]"
ANCHOR = {"expires_after[anchor]": "created_at"}


@pytest.mark.parametrize(
    ("texts", "param", "code"),
    [
        ({"expires_after.anchor": "created_at"}, "expires_after.anchor", "unknown_parameter"),
        ({"expires_after[days]": "1"}, "expires_after[days]", "unknown_parameter"),
        (ANCHOR, "expires_after.seconds", "missing_required_parameter"),
        ({SECONDS: "7200"}, "expires_after.anchor", "missing_required_parameter"),
        ({SECONDS: "7200", "expires_after[anchor]": "now"}, "expires_after.anchor", "invalid_value"),
        ({**ANCHOR, SECONDS: "3599"}, "expires_after.seconds", "integer_below_min_value"),
        ({**ANCHOR, SECONDS: "-7200"}, "expires_after.seconds", "integer_below_min_value"),
        ({**ANCHOR, SECONDS: "2592001"}, "expires_after.seconds", "integer_above_max_value"),
        ({**ANCHOR, SECONDS: "9" * 40}, "expires_after.seconds", "integer_above_max_value"),
        ({**ANCHOR, SECONDS: "9" * 5_000}, "expires_after.seconds", "invalid_type"),
        ({**ANCHOR, SECONDS: "7200.5"}, "expires_after.seconds", "invalid_type"),
        ({**ANCHOR, SECONDS: "soon"}, "expires_after.seconds", "invalid_type"),
        ({**ANCHOR, SECONDS: "٣٦٠٠"}, "expires_after.seconds", "invalid_type"),
        ({**ANCHOR, SECONDS: ""}, "expires_after.seconds", "invalid_type"),
        ({JSON: "7200"}, "expires_after", "invalid_type"),
        ({JSON: "null"}, "expires_after", "invalid_type"),
        ({JSON: "{"}, "expires_after", "invalid_value"),
        ({JSON: "[" * 50_000}, "expires_after", "invalid_value"),
        ({JSON: '{"anchor": "created_at"}'}, "expires_after.seconds", "missing_required_parameter"),
        ({JSON: '{"anchor": "created_at", "seconds": "7200"}'}, "expires_after.seconds", "invalid_type"),
        ({JSON: '{"anchor": "created_at", "seconds": true}'}, "expires_after.seconds", "invalid_type"),
        ({JSON: "{}", **ANCHOR}, "expires_after", "invalid_value"),
    ],
)  # fmt: skip
def test_any_other_expiry_is_refused(server, key, texts, param, code):
    answer = post(server, key, form(**texts))
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, code)


# --- idempotency -----------------------------------------------------------------------------------------


def test_a_repeated_create_with_an_idempotency_key_returns_the_first_file(server, key):
    headers = {**FORM, "Idempotency-Key": "once"}
    first = post(server, key, form(), headers).json()
    before = blobs_of(server)
    assert post(server, key, form(), headers).json() == first
    assert blobs_of(server) == before


def test_an_idempotency_key_used_for_another_file_is_a_conflict(server, key):
    headers = {**FORM, "Idempotency-Key": "twice"}
    post(server, key, form(), headers)
    before = blobs_of(server)
    for other in (form(content=LINE.replace(b'"a"', b'"b"')), form(filename="b"), form(purpose="evals")):
        answer = post(server, key, other, headers)
        assert answer.status == 409
        assert answer.headers["x-should-retry"] == "false"
    assert blobs_of(server) == before


def test_without_an_idempotency_key_every_create_makes_a_file(server, key):
    assert post(server, key, form()).json()["id"] != post(server, key, form()).json()["id"]


# --- read, list, delete ----------------------------------------------------------------------------------


def test_an_empty_list_has_empty_ids(server, key):
    answer = server.send("GET", "/v1/files", key=key)
    assert list(answer.json().items()) == [
        ("object", "list"), ("data", []), ("has_more", False), ("first_id", ""), ("last_id", ""),
    ]  # fmt: skip


def test_files_are_listed_newest_first_page_by_page(server, key, client):
    made = [client.files.create(file=LINE, purpose="batch").id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=5)] == made[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=3)] == made
    page = server.send("GET", "/v1/files?limit=2", key=key).json()
    assert list(page) == ["object", "data", "has_more", "first_id", "last_id"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[4], made[3], True)
    assert server.send("GET", "/v1/files?limit=5", key=key).json()["has_more"] is False


def test_a_deleted_file_still_serves_as_a_cursor(client):
    made = [client.files.create(file=LINE, purpose="batch").id for _ in range(3)]
    client.files.delete(made[1])
    assert [file.id for file in client.files.list(after=made[1])] == [made[0]]


def test_the_list_can_be_filtered_by_purpose(client):
    client.files.create(file=LINE, purpose="batch")
    other = client.files.create(file=LINE, purpose="evals").id
    assert [file.id for file in client.files.list(purpose="evals")] == [other]
    assert client.files.list(purpose="unheard-of\x00").data == []


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=10001", "limit", "integer_above_max_value"),
        ("limit=-99999999999999999999", "limit", "integer_below_min_value"),
        ("limit=many", "limit", "invalid_type"),
        ("order=up", "order", "invalid_value"),
    ],
)
def test_a_query_out_of_bounds_is_refused(server, key, query, param, code):
    answer = server.send("GET", f"/v1/files?{query}", key=key)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert answer.json()["detail"]["code"] == code


@pytest.mark.parametrize("after", ["file-1111111111111111111111", "x%00", "%ff", "x" * 1_000])
def test_an_unknown_cursor_is_refused(server, key, after):
    answer = server.send("GET", f"/v1/files?after={after}", key=key)
    assert (answer.status, answer.error["param"]) == (404, "after")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/content"), ("HEAD", "/content")]
)
@pytest.mark.parametrize(
    "file_id", ["file-1111111111111111111111", "x%00", "..%2f..%2fetc", "%ff", "file-" + "x" * 500]
)
def test_an_unknown_file_is_not_found(server, key, method, path, file_id):
    answer = server.send(method, f"/v1/files/{file_id}{path}", key=key)
    assert answer.status == 404
    if method != "HEAD" and "2f" not in file_id:
        assert answer.error["message"].startswith("No such File object: ")
        assert answer.error["param"] == "id"
        assert answer.json()["detail"]["message"] == answer.error["message"]


def test_a_file_of_another_project_is_not_found(server, client, input_file_id):
    other = server.client(server.new_key("another"))
    for ask in (other.files.retrieve, other.files.delete, other.files.content):
        with pytest.raises(openai.NotFoundError):
            ask(input_file_id)
    assert client.files.retrieve(input_file_id).id == input_file_id


def test_a_deleted_file_is_not_found(server, key, client, input_file_id):
    answer = server.send("DELETE", f"/v1/files/{input_file_id}", key=key)
    assert list(answer.json().items()) == [("object", "file"), ("deleted", True), ("id", input_file_id)]
    with pytest.raises(openai.NotFoundError):
        client.files.content(input_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(input_file_id)
    assert client.files.list().data == []


def test_the_bytes_of_a_file_lie_under_its_id(server, client):
    file = client.files.create(file=("../../etc/passwd", LINE), purpose="batch")
    assert file.filename == "../../etc/passwd"
    assert f"files/{file.id}" in blobs_of(server)


# --- hostile and unlucky senders -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", FORM),
        (b"\x00" * 1_000, FORM),
        (b"--bound--", FORM),
        (b"--bound\r\n", FORM),
        (form()[:-10], FORM),
        (form().replace(b"form-data", b"attachment"), FORM),
        (form().replace(b"\r\n", b"\n"), FORM),
        (form(), {"Content-Type": "multipart/form-data; boundary=other"}),
        (form(), {"Content-Type": "multipart/form-data"}),
        (form(), {"Content-Type": "application/x-www-form-urlencoded"}),
        (form(), {}),
        (json.dumps({"file": "x", "purpose": "batch"}), {"Content-Type": "application/json"}),
    ],
)
def test_a_malformed_form_is_refused_in_an_envelope(server, key, body, headers):
    before = blobs_of(server)
    answer = post(server, key, body, headers)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.json()["detail"]["message"] == answer.error["message"]
    assert blobs_of(server) == before


def connect(server, key, announced, *headers):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    lines = [
        "POST /v1/files HTTP/1.1", "Host: localhost", *([f"Authorization: Bearer {key}"] if key else []),
        "Content-Type: multipart/form-data; boundary=bound", f"Content-Length: {announced}", *headers,
    ]  # fmt: skip
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_an_aborted_upload_leaves_no_bytes(serve):
    server = serve()
    for _ in range(3):
        with connect(server, None, 10_000_000) as connection:
            connection.sendall(form(content=b"x" * 3_000_000)[:2_500_000])
            eventually(lambda: blobs_of(server))
        eventually(lambda: not blobs_of(server))
    assert post(server, None, form()).status == 200


def test_a_stalled_upload_is_ended_and_leaves_no_bytes(serve):
    server = serve(settings={"api": {"upload_idle_s": 0.2}})
    with connect(server, None, 10_000_000) as connection:
        connection.sendall(form(content=b"x" * 1_500_000)[:-1_000])
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["message"]
    assert not blobs_of(server)


def test_a_client_that_is_still_sending_receives_the_error(serve):
    server = serve(settings={"limits": {"input_file_bytes": 1_000, "file_bytes": 1_000}})
    with pytest.raises(openai.BadRequestError, match=r"File is too large\."):
        server.client().files.create(file=LINE * 400_000, purpose="batch")
    assert not blobs_of(server)


def test_an_error_for_a_fully_received_body_keeps_the_connection(server, key):
    answer = post(server, key, b"x", {"Content-Type": "text/plain"})
    assert answer.status == 400
    assert "connection" not in answer.headers
    assert "connection" not in server.send("GET", "/v1/files", key=key).headers


def test_a_wrong_content_type_is_reported_to_a_client_that_is_still_sending(server, key):
    answer = server.send("POST", "/v1/files", b"x" * 30_000_000, {"Content-Type": "text/plain"}, key=key)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_content_type")


def test_a_client_that_expects_100_continue_gets_the_error_at_once(server, key):
    with connect(server, key, 10**12, "Expect: 100-continue") as connection:
        assert connection.recv(1_000).startswith(b"HTTP/1.1 400 ")


def test_uploads_over_the_limit_get_a_retry_after_header(serve):
    server = serve(settings={"api": {"max_open_uploads": 1}})
    body = form(content=b"x" * 2_000_000, purpose="evals")
    with connect(server, None, len(body)) as connection:
        connection.sendall(body[:1_500_000])
        eventually(lambda: blobs_of(server))
        answer = post(server, None, form())
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.error["code"] == "rate_limit_exceeded"
        connection.sendall(body[1_500_000:])
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200 ")
    assert post(server, None, form()).status == 200


def test_a_full_disk_is_a_507(serve):
    from dataclasses import replace

    from nightmill.blobs import FolderBlobs, PiecedBlobs

    def full(context):
        folder = Path(context.blobs.plain.path("x")).parent
        return replace(context, blobs=PiecedBlobs(FolderBlobs(folder, watermark_bytes=1 << 60)))

    server = serve(change=full)
    answer = post(server, None, form())
    assert (answer.status, answer.error["type"]) == (507, "server_error")
    assert not blobs_of(server)


def with_store(serve, add_file):
    """A server whose store does `add_file(real_store, *arguments)`."""
    from dataclasses import replace

    def changed(context):
        adding = partial(add_file, context.store)
        return replace(context, store=with_verb(context.store, "files", "add", adding))

    return serve(change=changed)


def test_a_full_store_leaves_no_bytes(serve):
    from nightmill.errors import StorageFullError

    async def full(*_, **__):
        raise StorageFullError("the disk of the store's database is full")

    server = with_store(serve, full)
    assert post(server, None, form()).status == 507
    assert not blobs_of(server)


def test_a_file_whose_commit_response_was_lost_keeps_its_bytes(serve):
    from nightmill.errors import UnavailableError

    async def cut_off(store, *arguments, **named):
        await store.files.add(*arguments, **named)
        raise UnavailableError("the connection to the store broke")

    server = with_store(serve, cut_off)
    assert post(server, None, form()).status == 503
    (file,) = server.send("GET", "/v1/files").json()["data"]
    assert server.send("GET", f"/v1/files/{file['id']}/content").body == LINE


def test_fifty_uploads_at_once_all_arrive(server, key):
    bodies = [form(content=LINE * size, filename=str(size)) for size in range(1, 51)]
    connections = [connect(server, key, len(body), "Connection: close") for body in bodies]
    for pieces in itertools.zip_longest(
        *([body[i : i + 1_000] for i in range(0, len(body), 1_000)] for body in bodies)
    ):
        for connection, piece in zip(connections, pieces, strict=True):
            if piece:
                connection.sendall(piece)
    for size, connection in enumerate(connections, 1):
        with connection, connection.makefile("rb") as answer:
            file = json.loads(answer.read().partition(b"\r\n\r\n")[2])
        assert (file["filename"], file["bytes"]) == (str(size), len(LINE) * size)


def test_the_openapi_document_describes_streamed_bodies(server):
    paths = server.send("GET", "/openapi.json").json()["paths"]
    for path, operation_id, schema in (
        ("/files", "createFile", "CreateFileRequest"),
        ("/uploads/{upload_id}/parts", "addUploadPart", "AddUploadPartRequest"),
    ):
        operation = paths[path]["post"]
        content = operation["requestBody"]["content"]["multipart/form-data"]
        assert operation["operationId"] == operation_id
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}
    described = {
        (path, verb): it["operationId"] for path, verbs in paths.items() for verb, it in verbs.items()
    }
    assert described["/files", "get"] == "listFiles"
    assert described["/files/{file_id}", "get"] == "retrieveFile"
    assert described["/files/{file_id}", "delete"] == "deleteFile"
    assert described["/files/{file_id}/content", "get"] == "downloadFile"
    assert described["/uploads", "post"] == "createUpload"
    assert described["/uploads/{upload_id}/complete", "post"] == "completeUpload"
    assert described["/uploads/{upload_id}/cancel", "post"] == "cancelUpload"


@pytest.mark.parametrize("cut", [1, 100_003, 1 << 20])
def test_a_large_body_is_kept_byte_for_byte_and_a_request_right_behind_it_is_answered(
    server, key, project, cut
):
    content = secrets.token_bytes(1 << 20) + b"\r\n--boun" + secrets.token_bytes(2 << 20)
    body = form(content=content, purpose="user_data")
    named = f"HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\n"
    head = f"POST /v1/files {named}Content-Type: multipart/form-data; boundary=bound\r\n"
    behind = f"GET /v1/files?limit=1 {named}"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
        time.sleep(0.05)  # so that what follows comes by itself
        connection.sendall(body[cut:-3])
        time.sleep(0.05)
        connection.sendall(body[-3:] + f"{behind}\r\n{behind}Connection: close\r\n\r\n".encode())
        answers = b""
        while received := connection.recv(1 << 16):
            answers += received
    first, *others = answers.split(b"HTTP/1.1 ")[1:]
    file_id = json.loads(first.partition(b"\r\n\r\n")[2])["id"]
    assert len(others) == 2
    for other in others:
        assert json.loads(other.partition(b"\r\n\r\n")[2])["data"][0]["id"] == file_id
    stored = server.do(server.context.store.files.get(project, file_id))
    assert server.do(server.context.blobs.read(stored.blob_key, 0, len(content) + 1)) == content
