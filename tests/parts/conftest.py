import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nightmill.blobs.bucket import Bucket
from nightmill.blobs.connect import connect
from nightmill.parts import FolderParts, Parts
from nightmill.parts.objects import ObjectParts
from nightmill.settings import BlobSettings
from tests.fleet.azurite import Azurite
from tests.fleet.rgw import RadosGateway
from tests.gcs_server import GcsServer
from tests.s3_server import S3Server

KINDS = ["parts", "memory_parts", "s3_parts", "gcs_parts"]
if os.environ.get("TEST_FLEET"):
    KINDS += ["rgw_parts", "azure_parts"]


def object_parts(bucket: Bucket, *, interval_s: float = 0.005, buffer_bytes: int = 1 << 20) -> ObjectParts:
    return ObjectParts(
        bucket,
        interval_s=interval_s,
        part_bytes=1 << 16,
        buffer_bytes=buffer_bytes,
        puts_at_once=4,
        retry_s=0.01,
    )


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FolderParts]:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0.005, buffer_bytes=1 << 20, retry_s=0.01)
    yield parts
    await parts.close()


@pytest.fixture
def bucket_name(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
def bucket(s3: S3Server, bucket_name: str) -> Bucket:
    return connect(BlobSettings.model_validate({**s3.settings(bucket_name), "retry_s": 0}))


@pytest.fixture
async def s3_parts(bucket: Bucket) -> AsyncIterator[ObjectParts]:
    parts = object_parts(bucket)
    yield parts
    await parts.close()


@pytest.fixture
async def memory_parts() -> AsyncIterator[ObjectParts]:
    parts = object_parts(connect(BlobSettings(url="memory://")))
    yield parts
    await parts.close()


@pytest.fixture
async def gcs_parts(gcs: GcsServer) -> AsyncIterator[ObjectParts]:
    parts = object_parts(connect(BlobSettings.model_validate(gcs.settings(gcs.make_bucket()))))
    yield parts
    await parts.close()


@pytest.fixture
async def rgw_parts(rgw: RadosGateway) -> AsyncIterator[ObjectParts]:
    parts = object_parts(connect(BlobSettings.model_validate(rgw.settings())))
    yield parts
    await parts.close()


@pytest.fixture
async def azure_parts(azure: Azurite) -> AsyncIterator[ObjectParts]:
    parts = object_parts(connect(BlobSettings.model_validate(azure.settings(azure.make_container()))))
    yield parts
    await parts.close()


@pytest.fixture(params=KINDS)
def any_parts(request: pytest.FixtureRequest) -> Parts:
    return request.getfixturevalue(request.param)
