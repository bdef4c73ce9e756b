"""ObjectBlobs against an S3 server that fails in the ways that a test orders."""

import asyncio
import base64
import hashlib
import os
import subprocess
import sys
import tracemalloc
import urllib.request
from typing import Any

import pytest

from nightmill.blobs.bucket import RefusedError
from nightmill.blobs.connect import connect
from nightmill.blobs.objects import ObjectBlobs
from nightmill.errors import SetupError, StorageFullError, UnavailableError
from nightmill.settings import BlobSettings
from tests.s3_server import Order, S3Server

MIB = 1 << 20
LARGE = 12 * MIB
CUSTOMER_KEY = base64.b64encode(bytes(range(32))).decode()


def blobs_of(s3: S3Server, bucket: str, **changes: Any) -> ObjectBlobs:
    settings = BlobSettings.model_validate({**s3.settings(bucket), **changes})
    return ObjectBlobs(connect(settings), part_bytes=5 * MIB)


@pytest.fixture
def patient(s3: S3Server, bucket_name: str) -> ObjectBlobs:
    """Repeats requests for so long that only the number of injected faults matters."""
    return blobs_of(s3, bucket_name, retry_s=60)


async def put(blobs: ObjectBlobs, key: str, content: bytes) -> None:
    writer = await blobs.open_writer(key)
    try:
        for start in range(0, len(content), MIB):
            await writer.write(content[start : start + MIB])
        await writer.commit()
    finally:
        await writer.abort()


def operation_of(request: str) -> str:
    """The name of the S3 operation."""
    method, path, *_ = request.split(" ")
    match method, path:
        case "PUT", _:
            return "UploadPart" if "partNumber=" in path else "PutObject"
        case "POST", _ if "?uploads" in path:
            return "CreateMultipartUpload"
        case "POST", _:
            return "DeleteObjects" if "?delete" in path else "CompleteMultipartUpload"
        case "GET", _:
            return "ListObjects" if "list-type=" in path else "GetObject"
        case "DELETE", _ if "uploadId=" in path:
            return "AbortMultipartUpload"
        case _:
            return {"HEAD": "HeadObject", "DELETE": "DeleteObject"}[method]


async def everything(blobs: ObjectBlobs, key: str) -> bytes:
    return b"".join([chunk async for chunk in blobs.stream(key)])


async def test_a_small_blob_is_one_request_and_a_large_one_a_multipart_upload(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    s3.order()
    await put(objects, "files/small", b"x" * MIB)
    assert s3.seen(bucket_name) == [f"PUT /{bucket_name}/some/prefix/files/small"]
    await put(objects, "files/large", b"x" * LARGE)
    assert sum("partNumber=" in request for request in s3.seen(bucket_name)) == 3


@pytest.mark.parametrize("size_bytes", [MIB, LARGE])
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("deed", ["slow down", "cut"])
async def test_an_upload_goes_through_a_store_that_asks_for_patience(
    patient: ObjectBlobs, s3: S3Server, deed: Any, method: str, size_bytes: int
) -> None:
    content = os.urandom(MIB) * (size_bytes // MIB)
    s3.order(Order(deed, method, times=2))
    await put(patient, "one", content)
    s3.order()
    assert await everything(patient, "one") == content


@pytest.mark.parametrize(
    ("size_bytes", "method", "path"),
    [(MIB, "PUT", "one"), (LARGE, "PUT", "partNumber=2"), (LARGE, "POST", "uploadId=")],
)
async def test_a_write_whose_answer_is_lost_is_there_all_the_same(
    patient: ObjectBlobs, s3: S3Server, bucket_name: str, size_bytes: int, method: str, path: str
) -> None:
    content = os.urandom(MIB) * (size_bytes // MIB)
    s3.order(Order("lose the answer", method, path, times=1))
    await put(patient, "one", content)
    assert await everything(patient, "one") == content
    assert s3.unfinished_uploads(bucket_name) == 0


async def test_an_upload_that_was_completed_though_the_store_knows_no_more_of_it_is_there(
    patient: ObjectBlobs, s3: S3Server
) -> None:
    s3.order(Order("lose the answer", "POST", "uploadId=", times=1), Order("gone", "POST", "uploadId="))
    content = os.urandom(MIB) * 12
    await put(patient, "one", content)
    assert await everything(patient, "one") == content


async def test_an_upload_that_vanished_is_not_there_even_where_an_older_blob_is(
    objects: ObjectBlobs, s3: S3Server
) -> None:
    await put(objects, "one", b"older")
    s3.order(Order("gone", "POST", "uploadId="))
    with pytest.raises(UnavailableError, match="HTTP 404 NoSuchUpload"):
        await put(objects, "one", b"x" * LARGE)


async def test_when_the_store_goes_away_in_the_middle_the_writer_says_so_and_nothing_is_visible(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    writer = await objects.open_writer("one")
    await writer.write(b"x" * LARGE)
    s3.order(Order("slow down", "PUT"))
    with pytest.raises(UnavailableError, match=rf"s3://{bucket_name}/some/prefix can't be reached for one"):
        while writer.size_bytes < 200 * MIB:
            await writer.write(b"x" * 5 * MIB)
    s3.order()
    await writer.abort()
    assert await objects.size_bytes("one") is None
    assert s3.unfinished_uploads(bucket_name) == 0


async def test_a_commit_that_fails_leaves_nothing_to_abort(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    writer = await objects.open_writer("one")
    await writer.write(b"x" * LARGE)
    s3.order(Order("slow down", "POST", "uploadId="))
    with pytest.raises(UnavailableError, match="HTTP 503 SlowDown"):
        await writer.commit()
    await writer.abort()
    assert s3.unfinished_uploads(bucket_name) == 0


@pytest.mark.parametrize("size_bytes", [MIB, LARGE])
async def test_a_commit_that_is_cancelled_leaves_nothing_visible(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str, size_bytes: int
) -> None:
    writer = await objects.open_writer("one")
    await writer.write(b"x" * size_bytes)
    committing = asyncio.create_task(writer.commit())
    await asyncio.sleep(0)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert await objects.size_bytes("one") is None
    assert s3.unfinished_uploads(bucket_name) == 0


async def test_abort_ends_the_multipart_upload(objects: ObjectBlobs, s3: S3Server, bucket_name: str) -> None:
    writer = await objects.open_writer("one")
    await writer.write(b"x" * LARGE)
    await writer.write(b"x" * LARGE)
    assert s3.unfinished_uploads(bucket_name) == 1
    await writer.abort()
    assert s3.unfinished_uploads(bucket_name) == 0


async def test_a_broken_download_goes_on_where_it_was(
    patient: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    content = os.urandom(LARGE)
    await put(patient, "one", content)
    s3.order(Order("half", "GET", times=2))
    pieces = [piece async for piece in patient.stream("one", chunk_bytes=100_000)]
    assert b"".join(pieces) == content
    assert len(s3.seen(bucket_name)) == 3


async def test_a_read_waits_for_a_store_that_asks_for_patience(patient: ObjectBlobs, s3: S3Server) -> None:
    await put(patient, "one", b"0123456789")
    s3.order(Order("slow down", times=2))
    assert await patient.read("one", 2, 3) == b"234"


async def test_a_store_that_is_away_is_unavailable_and_no_blob_looks_missing(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    await put(objects, "one", b"x")
    objects = blobs_of(s3, bucket_name, retry_s=0.2)
    s3.order(Order("cut"))
    for verb in (
        lambda: objects.size_bytes("one"),
        lambda: objects.read("one", 0, 1),
        lambda: everything(objects, "one"),
        lambda: objects.delete("one"),
        lambda: objects.delete_under("one"),
        lambda: put(objects, "two", b"x"),
    ):
        with pytest.raises(UnavailableError, match="can't be reached") as caught:
            await verb()
        assert "\n" not in caught.value.message
        assert "secret" not in caught.value.message


async def test_no_blob_looks_missing_when_the_whole_bucket_is(s3: S3Server) -> None:
    blobs = blobs_of(s3, "no-such-bucket")
    for verb in (
        lambda: blobs.size_bytes("one"),
        lambda: blobs.read("one", 0, 1),
        lambda: everything(blobs, "one"),
        lambda: put(blobs, "one", b"x"),
        lambda: put(blobs, "one", b"x" * LARGE),
        lambda: blobs.delete_under("one"),
    ):
        with pytest.raises(RefusedError, match="there is no such bucket"):
            await verb()


async def test_a_good_bucket_passes_the_check_and_keeps_nothing_of_it(objects: ObjectBlobs) -> None:
    await objects.bucket.check()
    assert [key async for key in objects.keys_under("probe")] == []


async def test_a_missing_bucket_gives_an_error_of_one_line(s3: S3Server) -> None:
    with pytest.raises(
        SetupError, match=r"^s3://none/some/prefix: there is no such bucket; see blobs.url"
    ) as caught:
        await blobs_of(s3, "none").bucket.check()
    assert "\n" not in str(caught.value)


async def test_refused_credentials_give_an_error_of_one_line(objects: ObjectBlobs, s3: S3Server) -> None:
    s3.order(Order("deny"))
    with pytest.raises(
        SetupError, match=r"access denied \(HTTP 403 AccessDenied\); see .*access_key_id"
    ) as caught:
        await objects.bucket.check()
    assert "\n" not in str(caught.value)


async def test_a_store_that_is_away_at_the_check_is_unavailable() -> None:
    settings = BlobSettings.model_validate(
        {
            "url": "s3://b",
            "endpoint": "http://127.0.0.1:9",
            "allow_http": True,
            "retry_s": 0,
            "access_key_id": "a",
            "secret_access_key": "b",
        }
    )
    with pytest.raises(UnavailableError, match=r"can't be reached for probe/.* \(no connection\)"):
        await connect(settings).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "ftp://b/p"}, r"'ftp://b/p' is none of s3://"),
        ({"url": "s3:///p"}, "is none of s3://"),
        ({"url": "az://account"}, "is none of s3://"),
        ({"options": {"no_such_option": "1"}}, "no_such_option"),
        ({"url": "gs://b/p", "secret_access_key": "no json"}, "gs://b/p"),
    ],
)
def test_unusable_settings_give_an_error_of_one_line(
    s3: S3Server, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        blobs_of(s3, "b", **changes)
    assert "\n" not in str(caught.value)
    assert "no json" not in str(caught.value)


def test_azure_and_google_take_the_same_settings() -> None:
    key = "c2VjcmV0"
    for settings in (
        BlobSettings.model_validate({"url": "az://account/container/a/b", "secret_access_key": key}),
        BlobSettings.model_validate({"url": "gs://bucket/a/b", "options": {"skip_signature": "true"}}),
    ):
        assert connect(settings).name == settings.url


async def test_deleting_hides_nothing_behind_a_lagging_listing(objects: ObjectBlobs, s3: S3Server) -> None:
    await put(objects, "lines/one/2", b"x")
    s3.order(Order("hide", "GET", "list-type"))
    await objects.delete_under("lines/one")
    assert await objects.read("lines/one/2", 0, 9) == b"x"
    s3.order()
    await objects.delete_under("lines/one")
    assert await objects.size_bytes("lines/one/2") is None


async def test_more_keys_than_one_request_takes_are_deleted(
    objects: ObjectBlobs, s3: S3Server, bucket_name: str
) -> None:
    for first in range(0, 1_100, 50):
        async with asyncio.TaskGroup() as group:
            for number in range(first, first + 50):
                group.create_task(objects.bucket.put(f"many/{number}", b""))
    s3.order()
    await objects.delete_under("many")
    assert sum(request.startswith("POST") for request in s3.seen(bucket_name)) == 2
    assert [key async for key in objects.keys_under("many")] == []


async def test_a_signed_link_gives_the_bytes_without_a_key(objects: ObjectBlobs) -> None:
    await put(objects, "one", b"for whoever has the link")
    url = await objects.signed_url("one", ttl_s=60)
    assert url is not None

    def download() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()

    assert await asyncio.to_thread(download) == b"for whoever has the link"
    assert "X-Amz-Expires=60" in url


async def test_encryption_is_requested(s3: S3Server, bucket_name: str) -> None:
    s3.order()
    blobs = blobs_of(s3, bucket_name, encryption="aws:kms", encryption_key="alias/ours")
    await put(blobs, "one", b"x")
    assert s3.seen(bucket_name) == [f"PUT /{bucket_name}/some/prefix/one aws:kms alias/ours"]


async def test_a_key_of_the_customer_goes_with_every_request_that_writes_or_reads_an_object(
    s3: S3Server, bucket_name: str
) -> None:
    blobs = blobs_of(s3, bucket_name, encryption="sse-c", encryption_key=CUSTOMER_KEY)
    s3.order(
        Order("lose the answer", "POST", "large.uploadId=", times=20),
        Order("half", "GET", "large", times=1),
    )
    await put(blobs, "small", b"x")
    await blobs.bucket.put_new("new", b"x")
    await put(
        blobs, "large", b"x" * LARGE
    )  # the lost responses cause the requests AbortMultipartUpload and HEAD
    assert await everything(blobs, "large") == b"x" * LARGE
    assert await blobs.read("large", 3, 2) == b"xx"
    assert await blobs.size_bytes("small") == 1
    await blobs.delete_under("none")
    await blobs.delete("small")
    digest = base64.b64encode(hashlib.md5(base64.b64decode(CUSTOMER_KEY)).digest()).decode()
    operations: dict[bool, set[str]] = {True: set(), False: set()}
    for request in s3.seen(bucket_name):
        operations[request.endswith(f" AES256 {CUSTOMER_KEY} {digest}")].add(operation_of(request))
    assert operations == {
        True: {"PutObject", "CreateMultipartUpload", "UploadPart", "GetObject", "HeadObject"},
        False: {"CompleteMultipartUpload", "AbortMultipartUpload", "ListObjects", "DeleteObjects"},
    }


async def test_a_blob_under_a_key_of_the_customer_has_no_signed_link(s3: S3Server, bucket_name: str) -> None:
    blobs = blobs_of(s3, bucket_name, encryption="sse-c", encryption_key=CUSTOMER_KEY)
    await put(blobs, "one", b"x")
    assert await blobs.signed_url("one", ttl_s=60) is None


async def test_a_large_upload_and_download_are_flat_in_memory(objects: ObjectBlobs) -> None:
    piece = os.urandom(MIB)
    tracemalloc.start()
    writer = await objects.open_writer("one")
    for _ in range(60):
        await writer.write(piece)
    await writer.commit()
    seen_bytes = 0
    async for chunk in objects.stream("one"):
        seen_bytes += len(chunk)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen_bytes == 60 * MIB
    assert peak_bytes < 30 * MIB


async def test_an_exceeded_quota_is_reported_as_a_lack_of_room(
    objects: ObjectBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightmill.blobs import bucket

    async def full(*_: Any, **__: Any) -> None:
        raise bucket.BaseError("status code: 403 Forbidden: <Code>QuotaExceeded</Code>")

    monkeypatch.setattr(bucket.obstore, "put_async", full)
    with pytest.raises(StorageFullError, match="has no room for one"):
        await put(objects, "one", b"x")


ENDING = """
import asyncio, json, sys
from nightmill.blobs.connect import connect
from nightmill.blobs.objects import ObjectBlobs
from nightmill.settings import BlobSettings

async def main() -> None:
    blobs = ObjectBlobs(connect(BlobSettings.model_validate(json.loads(sys.argv[1]))), part_bytes=5 << 20)
    reading = [asyncio.create_task(blobs.size_bytes(f"none/{n}")) for n in range(20)]
    writer = await blobs.open_writer("one")
    await writer.write(b"x" * (11 << 20))
    reading += [asyncio.create_task(blobs.size_bytes(f"none/{n}")) for n in range(20)]
    await asyncio.sleep(0)
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    await writer.abort()
    await blobs.close()

asyncio.run(main())
"""


async def test_a_process_that_used_the_store_ends_cleanly(s3: S3Server, bucket_name: str) -> None:
    import json

    for _ in range(3):
        command = [sys.executable, "-c", ENDING, json.dumps(s3.settings(bucket_name))]
        ended = await asyncio.to_thread(subprocess.run, command, timeout=60, check=False, capture_output=True)
        assert (ended.returncode, ended.stderr) == (0, b"")
