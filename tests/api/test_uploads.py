"""Files in parts, by the official client and by hand (docs/openai-behaviour.md 1.3)."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest

from tests.store_doubles import with_verb

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
CONTENT = LINE * 1_000
UPLOAD_KEYS = ["id", "object", "bytes", "created_at", "filename", "purpose", "status", "expires_at"]
ASKED = {"bytes": len(CONTENT), "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}


def opened(client, **asked):
    return client.uploads.create(**(ASKED | asked))


def sent(client, upload, pieces):
    return [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]


def halves(client, upload, content=CONTENT):
    middle = len(content) // 2
    return sent(client, upload, [content[:middle], content[middle:]])


def blobs_of(server):
    root = server.folder / "blobs"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def unused_of(server, upload):
    keys = server.do(server.context.store.blob_references.unused())
    return [key for key in keys if key.startswith(f"uploads/{upload.id}/")]


def test_a_new_upload_has_the_published_keys_and_no_file(server, key):
    answer = server.send_json("/v1/uploads", ASKED, key=key)
    assert answer.status == 200
    upload = answer.json()
    assert list(upload) == UPLOAD_KEYS
    assert upload["id"].startswith("upload_")
    assert (upload["object"], upload["status"], upload["bytes"]) == ("upload", "pending", len(CONTENT))
    assert upload["expires_at"] == upload["created_at"] + 3_600


def test_the_official_client_uploads_bytes_in_parts(client):
    upload = client.uploads.upload_file_chunked(
        file=CONTENT,
        filename="in.jsonl",
        bytes=len(CONTENT),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=10_000,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert (upload.status, upload.file.bytes, upload.file.purpose) == ("completed", len(CONTENT), "batch")
    assert client.files.content(upload.file.id).content == CONTENT


def test_the_official_client_uploads_a_path_in_parts(client, tmp_path):
    path = tmp_path / "on-disk.jsonl"
    path.write_bytes(CONTENT)
    upload = client.uploads.upload_file_chunked(file=path, mime_type="application/jsonl", purpose="batch")
    assert upload.file.filename == "on-disk.jsonl"
    assert client.files.retrieve(upload.file.id) == upload.file


def test_a_completed_upload_ends_with_its_file(server, key, client):
    upload = opened(client, expires_after={"anchor": "created_at", "seconds": 7_200})
    answer = server.send_json(
        f"/v1/uploads/{upload.id}/complete", {"part_ids": halves(client, upload)}, key=key
    )
    assert list(answer.json()) == [*UPLOAD_KEYS, "file"]
    file = answer.json()["file"]
    assert (file["object"], file["status"]) == ("file", "processed")
    assert file["expires_at"] == file["created_at"] + 7_200


def test_a_part_has_the_published_keys(server, key, client):
    upload = opened(client)
    form = b'--b\r\nContent-Disposition: form-data; name="data"; filename="blob"\r\n\r\nx\r\n--b--'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.send("POST", f"/v1/uploads/{upload.id}/parts", form, headers, key=key)
    assert list(answer.json()) == ["id", "object", "created_at", "upload_id"]
    assert answer.json()["id"].startswith("part_")
    assert (answer.json()["object"], answer.json()["upload_id"]) == ("upload.part", upload.id)


def test_the_part_ids_set_the_order_of_parts(client):
    upload = opened(client, purpose="evals", bytes=3)
    first, second, third = (
        client.uploads.parts.create(upload.id, data=piece).id for piece in (b"1", b"2", b"3")
    )
    done = client.uploads.complete(upload.id, part_ids=[third, first, second])
    assert client.files.content(done.file.id).content == b"312"


def test_parts_can_arrive_concurrently(client):
    upload = opened(client)
    pieces = [CONTENT[start : start + 9_000] for start in range(0, len(CONTENT), 9_000)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece).id, pieces))
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert client.files.content(done.file.id).content == CONTENT


def test_large_parts_become_the_file_without_a_copy(server, client):
    content = CONTENT * 40
    upload = opened(client, bytes=len(content))
    left = client.uploads.parts.create(upload.id, data=b"sent twice by a retry").id
    ids = halves(client, upload, content)
    before = blobs_of(server)
    file = client.uploads.complete(upload.id, part_ids=ids, md5=hashlib.md5(content).hexdigest()).file
    assert blobs_of(server) - before == {f"files/{file.id}.pieces"}
    assert client.files.content(file.id).content == content
    assert file.bytes == len(content)
    assert unused_of(server, upload) == [f"uploads/{upload.id}/{left}"], "no other blob may go"


def test_a_single_part_becomes_the_file_without_a_copy(server, client):
    upload = opened(client)
    ids = sent(client, upload, [CONTENT])
    before = blobs_of(server)
    file = client.uploads.complete(upload.id, part_ids=ids).file
    assert blobs_of(server) == before
    assert client.files.content(file.id).content == CONTENT
    assert unused_of(server, upload) == []
    client.files.delete(file.id)
    assert unused_of(server, upload) == [f"uploads/{upload.id}/{ids[0]}"]


def test_a_part_without_its_id_in_complete_is_left_out(client):
    upload = opened(client)
    client.uploads.parts.create(upload.id, data=b"sent twice by a retry")
    done = client.uploads.complete(upload.id, part_ids=halves(client, upload))
    assert done.file.bytes == len(CONTENT)


def test_an_empty_upload_can_be_completed(client):
    upload = opened(client, purpose="evals", bytes=0)
    assert client.uploads.complete(upload.id, part_ids=[]).file.bytes == 0


# --- refusals leave it pending ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"bytes": None}, "bytes", "invalid_type"),
        ({"bytes": -1}, "bytes", "integer_below_min_value"),
        ({"bytes": (8 << 30) + 1}, "bytes", "integer_above_max_value"),
        ({"bytes": 10**400}, "bytes", "integer_above_max_value"),
        ({"bytes": "5"}, "bytes", "invalid_type"),
        ({"purpose": "world_domination"}, "purpose", "invalid_value"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),
        ({"filename": 5}, "filename", "invalid_type"),
        ({"filename": "x" * 2_000}, "filename", "string_above_max_length"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds", "missing_required_parameter"),
        ({"expires_after": {"anchor": "now", "seconds": 7_200}}, "expires_after.anchor", "invalid_value"),
    ],
)  # fmt: skip
def test_an_invalid_upload_is_refused(server, key, asked, param, code):
    answer = server.send_json("/v1/uploads", ASKED | asked, key=key)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)


@pytest.mark.parametrize("name", ["bytes", "filename", "mime_type", "purpose"])
def test_a_missing_parameter_is_named_in_the_error(server, key, name):
    asked = {other: value for other, value in ASKED.items() if other != name}
    answer = server.send_json("/v1/uploads", asked, key=key)
    assert answer.error["message"] == f"Missing required parameter: '{name}'."


def test_the_filename_of_an_upload_loses_control_characters(client):
    assert opened(client, filename="../a\x00\r\nb", mime_type="a\x00b").filename == "../ab"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda ids: {"part_ids": ids[:1]}, "bytes"),
        (lambda _: {"part_ids": []}, "bytes"),
        (lambda ids: {"part_ids": [*ids, ids[0]]}, "part_ids"),
        (lambda ids: {"part_ids": [ids[0], "part_0"]}, "part_ids"),
        (lambda ids: {"part_ids": [ids[0], "x\x00" * 500]}, "part_ids"),
        (lambda ids: {"part_ids": ids[0]}, "part_ids"),
        (lambda ids: {"part_ids": ids, "md5": "0" * 32}, "md5"),
        (lambda ids: {"part_ids": ids, "md5": "ä"}, "md5"),
        (lambda ids: {"part_ids": ids, "md5": 5}, "md5"),
        (lambda _: {}, "part_ids"),
    ],
)
def test_a_refused_complete_can_be_tried_again(server, key, client, change, param):
    upload = opened(client)
    ids = halves(client, upload)
    before = blobs_of(server)
    answer = server.send_json(f"/v1/uploads/{upload.id}/complete", change(ids), key=key)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert blobs_of(server) == before
    md5 = hashlib.md5(CONTENT).hexdigest().upper()
    assert client.uploads.complete(upload.id, part_ids=ids, md5=md5).status == "completed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "Must be .jsonl"),
        (b"\x1f\x8b" + b"x" * 20, "Must be .jsonl"),
        (b'{"a": "\xff\xff"}', "Must be utf-8 encoded"),
        (b"x", "Must be .jsonl"),
        (LINE.decode().encode("utf-16-le"), "The file is UTF-16 text"),
        (LINE.decode().encode("utf-32-be"), "The file is UTF-32 text"),
    ],
)
def test_batch_input_is_checked_across_parts(client, content, message):
    upload = opened(client, bytes=len(content))
    ids = halves(client, upload, content)
    with pytest.raises(openai.BadRequestError, match=message):
        client.uploads.complete(upload.id, part_ids=ids)


def test_a_character_may_span_two_parts(client):
    content = '{"a": "ä"}'.encode()
    upload = opened(client, bytes=len(content))
    middle = content.index(b"\xa4")
    ids = [
        client.uploads.parts.create(upload.id, data=piece).id
        for piece in (content[:middle], content[middle:])
    ]
    assert client.uploads.complete(upload.id, part_ids=ids).status == "completed"


def test_a_part_over_the_limit_is_refused_and_leaves_nothing(serve):
    server = serve(settings={"limits": {"upload_part_bytes": 1_000, "upload_bytes": 2_500}})
    client = server.client()
    upload = opened(client, bytes=2_000)
    with pytest.raises(openai.BadRequestError, match="too large"):
        client.uploads.parts.create(upload.id, data=b"x" * 1_001)
    assert not blobs_of(server)
    for _ in range(2):
        client.uploads.parts.create(upload.id, data=b"x" * 1_000)
    with pytest.raises(openai.BadRequestError, match="too large"):
        client.uploads.parts.create(upload.id, data=b"x" * 501)
    with pytest.raises(openai.BadRequestError, match="above maximum"):
        opened(client, bytes=2_501)


def test_a_part_without_data_is_refused(server, key, client):
    upload = opened(client)
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = server.send("POST", f"/v1/uploads/{upload.id}/parts", form, headers, key=key)
    assert answer.error["message"] == "Missing required parameter: 'data'."


# --- ends ------------------------------------------------------------------------------------------------


def test_a_cancelled_upload_refuses_further_calls(client):
    upload = opened(client)
    ids = halves(client, upload)
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(upload.id, data=b"x")
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.complete(upload.id, part_ids=ids)


def test_a_completed_upload_refuses_further_calls_and_names_its_file(client):
    upload = opened(client)
    ids = halves(client, upload)
    file = client.uploads.complete(upload.id, part_ids=ids).file
    with pytest.raises(openai.BadRequestError, match=file.id):
        client.uploads.complete(upload.id, part_ids=ids)
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.parts.create(upload.id, data=b"x")
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(upload.id)


def test_an_upload_expires_after_an_hour(serve):
    now = [1_800_000_000.0]
    server = serve(clock=lambda: now[0])
    client = server.client()
    upload = opened(client)
    ids = halves(client, upload)
    now[0] += 3_600
    for late in (
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
        lambda: client.uploads.complete(upload.id, part_ids=ids),
        lambda: client.uploads.cancel(upload.id),
    ):
        with pytest.raises(openai.BadRequestError, match="expired"):
            late()


def test_a_part_that_arrives_after_the_end_of_its_upload_is_deleted(serve):
    def cancelled_meanwhile(context):
        async def add_part(part):
            upload = await context.store.uploads.get("default", part.upload_id)
            await context.store.uploads.cancel(upload)
            return await context.store.uploads.add_part(part)

        return replace(context, store=with_verb(context.store, "uploads", "add_part", add_part))

    server = serve(change=cancelled_meanwhile)
    client = server.client()
    upload = opened(client)
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(upload.id, data=b"x")
    assert not blobs_of(server)


@pytest.mark.parametrize("size", ["copied", "pieces", "one part"])
@pytest.mark.parametrize("processes", ["one process", "several"])
def test_only_a_single_concurrent_complete_succeeds(serve, monkeypatch, processes, size):
    if processes == "several":
        from contextlib import nullcontext

        from nightmill.api.upload_limiter import UploadLimiter

        monkeypatch.setattr(UploadLimiter, "exclusive", lambda *_: nullcontext())
    server = serve()
    client = server.client()
    content = CONTENT * 40 if size == "pieces" else CONTENT
    upload = opened(client, bytes=len(content))
    ids = sent(client, upload, [content]) if size == "one part" else halves(client, upload, content)
    start = threading.Barrier(4)

    def complete(_):
        start.wait(10)
        try:
            return client.uploads.complete(upload.id, part_ids=ids)
        except openai.APIStatusError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(complete, range(4)))
    won = [result for result in results if not isinstance(result, Exception)]
    assert len(won) == 1
    assert {result.status_code for result in results if isinstance(result, Exception)} <= {400, 409}
    assert [file.id for file in client.files.list()] == [won[0].file.id]
    made = {
        "copied": {f"files/{won[0].file.id}"},
        "pieces": {f"files/{won[0].file.id}.pieces"},
        "one part": set(),
    }
    assert {blob for blob in blobs_of(server) if blob.startswith("files/")} == made[size]
    assert client.files.content(won[0].file.id).content == content


def test_other_requests_are_answered_while_parts_are_joined(serve):
    server = serve()
    client = server.client(timeout=60)
    part = b"x" * (32 << 20)
    upload = opened(client, bytes=4 * len(part), purpose="evals")
    ids = [client.uploads.parts.create(upload.id, data=part).id for _ in range(4)]
    md5 = hashlib.md5(part * 4).hexdigest()
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(client.uploads.complete, upload.id, part_ids=ids, md5=md5)
        while not joining.done():
            assert server.send("GET", "/v1/files").status == 200
            answered += 1
    assert joining.result().status == "completed"
    assert answered > 5


@pytest.mark.parametrize("upload_id", ["upload_0", "x%00", "%ff", "u" * 500])
@pytest.mark.parametrize("verb", ["complete", "cancel", "parts"])
def test_an_unknown_upload_is_not_found(server, key, verb, upload_id):
    answer = server.send_json(f"/v1/uploads/{upload_id}/{verb}", {"part_ids": []}, key=key)
    assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")


def test_an_upload_of_another_project_is_not_found(server, client):
    upload = opened(client)
    ids = halves(client, upload)
    other = server.client(server.new_key("another"))
    for ask in (
        lambda: other.uploads.cancel(upload.id),
        lambda: other.uploads.complete(upload.id, part_ids=ids),
        lambda: other.uploads.parts.create(upload.id, data=b"x"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    foreign = opened(other)
    with pytest.raises(openai.BadRequestError, match="No such Part"):
        other.uploads.complete(foreign.id, part_ids=ids)
