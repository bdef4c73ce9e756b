"""Downloads of files (docs/openai-behaviour.md 1.2, 9.7)."""

import asyncio
import hashlib
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from email.message import Message

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nightmill.api.download import content_disposition
from nightmill.core.file import Purpose
from nightmill.ids import FileId, ProjectId

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'


def download(server, key, file_id, method="GET", **headers):
    return server.send(method, f"/v1/files/{file_id}/content", headers=headers, key=key)


def test_a_download_has_length_name_and_type_headers(server, key, client):
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    answer = download(server, key, file.id)
    assert (answer.status, answer.body) == (200, LINE)
    assert answer.headers["content-length"] == str(len(LINE))
    assert answer.headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("transfer-encoding", "accept-ranges", "etag", "content-encoding"):
        assert name not in answer.headers


def test_an_image_is_not_sent_as_text(server, key, client):
    file = client.files.create(file=("a.png", b"\x89PNG"), purpose="vision")
    assert download(server, key, file.id).headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("accept", ["application/binary", "application/octet-stream", "text/plain", "*/*"])
def test_any_accept_header_is_accepted(server, key, input_file_id, accept):
    assert download(server, key, input_file_id, Accept=accept).status == 200


CONTENT = LINE * 3
SIZE = len(CONTENT)


@pytest.fixture
def ranged(server, key, client):
    """Asks for a range of one file."""
    file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")

    def ask(value, method="GET", **headers):
        answer = download(server, key, file.id, method, Range=value, **headers)
        return answer, f'"{file.id}"'

    return ask


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        ("bytes=-99999", 0, SIZE),
        (f"bytes=5-{SIZE + 5}", 5, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    ],
)
def test_a_range_is_answered_with_its_bytes(ranged, value, start, end):
    answer, etag = ranged(value)
    assert (answer.status, answer.body) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert (answer.headers["etag"], answer.headers["accept-ranges"]) == (etag, "bytes")


@pytest.mark.parametrize("value", ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "lines=0-1", "bytes=a-", ""])
def test_several_ranges_and_other_values_are_answered_with_the_whole_file(ranged, value):
    answer, _ = ranged(value)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("value", [f"bytes={SIZE}-", "bytes=99999-99999", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_length(ranged, value):
    answer, etag = ranged(value)
    assert (answer.status, answer.error["code"]) == (416, "range_not_satisfiable")
    assert (answer.headers["content-range"], answer.headers["etag"]) == (f"bytes */{SIZE}", etag)


def test_a_range_of_a_file_that_the_client_does_not_know_is_the_whole_file(ranged):
    answer, etag = ranged("bytes=5-9", **{"If-Range": '"file-other"'})
    assert (answer.status, answer.body) == (200, CONTENT)
    assert ranged("bytes=5-9", **{"If-Range": f"W/{etag}"})[0].status == 200
    assert ranged("bytes=5-9", **{"If-Range": "Sun, 29 Nov 2026 16:00:00 GMT"})[0].status == 200
    answer, _ = ranged("bytes=5-9", **{"If-Range": etag})
    assert (answer.status, answer.body) == (206, CONTENT[5:10])


def test_a_large_range_is_sent_in_chunks_and_nothing_is_compressed(server, key, client):
    content = b"".join(b"%09d\n" % number for number in range(300_000))
    file = client.files.create(file=content, purpose="evals")
    answer = download(server, key, file.id, **{"Range": "bytes=7-2999990", "Accept-Encoding": "gzip"})
    assert (answer.status, answer.body) == (206, content[7:2_999_991])


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_continues_a_download(server, key, client, tmp_path):
    file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
    target = tmp_path / "out.jsonl"
    target.write_bytes(CONTENT[:100])
    for _ in range(2):  # the second time, nothing is left
        url = f"{server.url}/v1/files/{file.id}/content"
        words = ["curl", "-s", "-C", "-", "-H", f"Authorization: Bearer {key}", "-o", str(target), url]
        subprocess.run(words, check=True)
        assert target.read_bytes() == CONTENT


def test_head_returns_the_headers_without_a_body(server, key, client, input_file_id):
    for headers in ({}, {"Range": "bytes=1-2"}):
        answer = download(server, key, input_file_id, "HEAD", **headers)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) == client.files.retrieve(input_file_id).bytes
        assert answer.headers["etag"] == f'"{input_file_id}"'
        assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("purpose", ["assistants", "user_data"])
def test_files_of_some_purposes_cannot_be_downloaded(server, key, client, purpose):
    file = client.files.create(file=("x", b"x"), purpose=purpose)
    answer = download(server, key, file.id)
    assert answer.status == 400
    assert answer.error["message"] == f"Not allowed to download files of purpose: {purpose}"
    assert (answer.error["param"], answer.error["code"]) == (None, None)


def test_the_official_client_streams_a_large_file(client, tmp_path):
    content = b"".join(b"%09d\n" % number for number in range(500_000))
    file = client.files.create(file=content, purpose="evals")
    with client.files.with_streaming_response.content(file.id) as answer:
        digest = hashlib.sha256()
        for chunk in answer.iter_bytes():
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(content).digest()
    client.files.content(file.id).write_to_file(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_a_file_deleted_during_a_download_is_sent_to_its_end(server, key, client):
    content = b"x" * 30_000_000
    file = client.files.create(file=content, purpose="evals")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        lines = [
            f"GET /v1/files/{file.id}/content HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {key}",
        ]
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        first = connection.recv(1_000)
        client.files.delete(file.id)
        server.do(server.context.blobs.delete(f"files/{file.id}"))
        with connection.makefile("rb") as rest:
            answer = first + rest.read()
    assert answer.partition(b"\r\n\r\n")[2] == content


def test_a_file_with_missing_bytes_is_not_found(server, key, client, input_file_id):
    server.do(server.context.blobs.delete(f"files/{input_file_id}"))
    answer = download(server, key, input_file_id)
    assert (answer.status, answer.error["param"]) == (404, "id")


def test_a_disconnect_ends_the_read_of_the_blob(serve):
    read = []
    ended = threading.Event()

    def watched(context):
        class Blobs:
            def __getattr__(self, name):
                return getattr(context.blobs, name)

            async def stream(self, key):
                try:
                    async for chunk in context.blobs.stream(key):
                        read.append(len(chunk))
                        await asyncio.sleep(0.05)
                        yield chunk
                finally:
                    ended.set()

        return replace(context, blobs=Blobs())

    server = serve(change=watched)
    file = server.client().files.create(file=b"x" * 50_000_000, purpose="evals")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"GET /v1/files/{file.id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        connection.recv(1_000)
    assert ended.wait(10)
    assert sum(read) < 25_000_000


def test_an_output_file_can_be_downloaded(server, key, client, project, input_file_id):
    file = server.do(server.context.store.files.get(ProjectId(project), FileId(input_file_id)))
    output = replace(
        file,
        id=FileId("file-output" + project),
        purpose=Purpose.BATCH_OUTPUT,
        filename="batch_x_output.jsonl",
    )
    server.do(server.context.store.files.add(output))
    answer = download(server, key, output.id)
    assert answer.status == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="batch_x_output.jsonl"'


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("in.jsonl", 'attachment; filename="in.jsonl"'),
        ("a b.jsonl", 'attachment; filename="a b.jsonl"'),
        ("ä.jsonl", "attachment; filename=\"_.jsonl\"; filename*=UTF-8''%C3%A4.jsonl"),
        ('a"; x="b', "attachment; filename=\"a__ x=_b\"; filename*=UTF-8''a%22%3B%20x%3D%22b"),
        ("../../x", "attachment; filename=\".._.._x\"; filename*=UTF-8''.._.._x"),
        ("C:\\x", "attachment; filename=\"C__x\"; filename*=UTF-8''C%3A_x"),
    ],
)
def test_a_filename_is_sanitised_in_the_header(filename, header):
    assert content_disposition(filename) == header


@given(st.text(max_size=400))
@example('"\r\nX-Evil: 1\r\n\r\n')
@example("\ud83d")
@example("\\")
def test_no_filename_can_end_its_header(filename):
    header = content_disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    parsed = Message()
    parsed["Content-Disposition"] = header
    assert parsed.get_content_disposition() == "attachment"
    assert {name for name, _ in parsed.get_params(header="Content-Disposition")[1:]} <= {
        "filename",
        "filename*",
    }
    assert "/" not in (parsed.get_filename() or "")
    assert "\\" not in (parsed.get_filename() or "")


def test_a_hostile_filename_adds_no_header(server, key):
    form = (
        b"--b\r\nContent-Disposition: form-data; name=file; filename*=utf-8''a%0d%0aX-Evil:%201%22%00\r\n"
        b"\r\n{}\r\n--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n--b--"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    file = server.send("POST", "/v1/files", form, headers, key=key).json()
    assert file["filename"] == 'aX-Evil: 1"'
    answer = download(server, key, file["id"])
    assert "x-evil" not in answer.headers
    assert answer.body == b"{}"
