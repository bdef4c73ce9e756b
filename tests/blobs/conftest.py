"""A blob store of each kind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nightmill.blobs import Blobs, FolderBlobs
from nightmill.blobs.connect import connect
from nightmill.blobs.objects import ObjectBlobs
from nightmill.settings import BlobSettings
from tests.s3_server import S3Server

MIB = 1 << 20


@pytest.fixture
def bucket_name(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
def objects(s3: S3Server, bucket_name: str) -> ObjectBlobs:
    bucket = connect(BlobSettings.model_validate(s3.settings(bucket_name)))
    return ObjectBlobs(bucket, part_bytes=5 * MIB)


def _folder(request: pytest.FixtureRequest) -> Blobs:
    folder: Path = request.getfixturevalue("tmp_path")
    return FolderBlobs(folder / "blobs", watermark_bytes=0)


def _memory(request: pytest.FixtureRequest) -> Blobs:
    return ObjectBlobs(connect(BlobSettings(url="memory://")), part_bytes=5 * MIB)


def _s3(request: pytest.FixtureRequest) -> Blobs:
    return request.getfixturevalue("objects")


def _rgw(request: pytest.FixtureRequest) -> Blobs:
    settings = BlobSettings.model_validate(request.getfixturevalue("rgw").settings())
    return ObjectBlobs(connect(settings), part_bytes=5 * MIB)


def _gcs(request: pytest.FixtureRequest) -> Blobs:
    server = request.getfixturevalue("gcs")
    settings = BlobSettings.model_validate(server.settings(server.make_bucket()))
    return ObjectBlobs(connect(settings), part_bytes=5 * MIB)


def _azure(request: pytest.FixtureRequest) -> Blobs:
    server = request.getfixturevalue("azure")
    settings = BlobSettings.model_validate(server.settings(server.make_container()))
    return ObjectBlobs(connect(settings), part_bytes=5 * MIB)


KINDS: dict[str, Callable[[pytest.FixtureRequest], Blobs]] = {
    "folder": _folder,
    "memory": _memory,
    "s3": _s3,
    "gcs": _gcs,
}
if os.environ.get("TEST_FLEET"):
    KINDS |= {"rgw": _rgw, "azure": _azure}


@pytest.fixture(params=list(KINDS))
def any_blobs(request: pytest.FixtureRequest) -> Blobs:
    return KINDS[request.param](request)


@pytest.fixture(params=["folder", "memory"])
def any_plain_blobs(request: pytest.FixtureRequest) -> Callable[[], Blobs]:
    """Opens a new store at each call, for property tests that write the same keys many times."""
    return lambda: KINDS[request.param](request)
