"""The app over a bucket: the same to a client, and 503 while the bucket is unavailable."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from nightmill.api.context import ApiContext
from nightmill.blobs import PiecedBlobs
from nightmill.blobs.connect import connect
from nightmill.blobs.objects import ObjectBlobs
from nightmill.settings import BlobSettings
from tests.s3_server import Order, S3Server

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'


@pytest.fixture
def serve_bucket(serve: Callable[..., Any], s3: S3Server) -> Callable[..., Any]:
    def start(**changes: Any) -> Any:
        section = {**s3.settings(s3.make_bucket()), "retry_s": 0.1, **changes}

        def over_bucket(context: ApiContext) -> ApiContext:
            bucket = connect(BlobSettings.model_validate(section))
            return replace(context, blobs=PiecedBlobs(ObjectBlobs(bucket, part_bytes=5 << 20)))

        return serve(settings={"blobs": section}, change=over_bucket)

    return start


def test_files_and_uploads_live_in_the_bucket(serve_bucket: Any) -> None:
    client = serve_bucket().client()
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    assert client.files.content(file.id).content == LINE
    upload = client.uploads.create(
        bytes=2 * len(LINE), filename="two.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    parts = [client.uploads.parts.create(upload.id, data=LINE) for _ in range(2)]
    completed = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert completed.file is not None
    assert client.files.content(completed.file.id).content == LINE * 2
    large = LINE * (13 * (1 << 20) // len(LINE))
    upload = client.uploads.create(
        bytes=2 * len(large), filename="four.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    parts = [client.uploads.parts.create(upload.id, data=large) for _ in range(2)]
    completed = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert completed.file is not None
    assert client.files.content(completed.file.id).content == large * 2
    file = client.files.create(file=("large.jsonl", large), purpose="batch")
    assert client.files.content(file.id).content == large


def test_a_file_of_pieces_is_streamed_instead_of_redirected(serve_bucket: Any) -> None:
    server = serve_bucket(presigned_downloads=True)
    client = server.client()
    half = LINE * (1 + (1 << 20) // len(LINE))
    upload = client.uploads.create(
        bytes=2 * len(half), filename="two.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    parts = [client.uploads.parts.create(upload.id, data=half) for _ in range(2)]
    completed = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    answer = server.send("GET", f"/v1/files/{completed.file.id}/content")
    assert (answer.status, answer.body) == (200, half * 2)


def test_a_download_is_redirected_only_if_settings_enable_it(serve_bucket: Any) -> None:
    server = serve_bucket(presigned_downloads=True, presigned_ttl_s=60)
    client = server.client()
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    answer = server.send("GET", f"/v1/files/{file.id}/content")
    assert answer.status == 302
    assert answer.headers["cache-control"] == "no-store"
    assert "X-Amz-Expires=60" in answer.headers["location"]
    assert httpx2.get(answer.headers["location"]).content == LINE
    assert client.files.content(file.id).content == LINE


@pytest.mark.parametrize("deed", ["slow down", "cut", "deny"])
def test_an_unavailable_bucket_is_a_503_with_retry_after(serve_bucket: Any, s3: S3Server, deed: Any) -> None:
    server = serve_bucket()
    client = server.client()
    file = client.files.create(file=("in.jsonl", LINE), purpose="batch")
    s3.order(Order(deed))
    path = f"/v1/files/{file.id}/content"
    boundary = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        + LINE
        + b"\r\n--x--\r\n"
    )
    for answer in (
        server.send("GET", path),
        server.send("POST", "/v1/files", boundary, {"Content-Type": "multipart/form-data; boundary=x"}),
    ):
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "secret" not in answer.error["message"]
    assert server.send("GET", f"/v1/files/{file.id}").status == 200
    s3.order()
    assert server.send("GET", path).body == LINE
