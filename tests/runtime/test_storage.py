"""Which storage the settings choose, and the errors before a start when it can't be used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nightmill.blobs import FolderBlobs
from nightmill.blobs.objects import ObjectBlobs
from nightmill.errors import SetupError, UnavailableError
from nightmill.parts import FolderParts
from nightmill.parts.objects import ObjectParts
from nightmill.roles.loop import Notifier
from nightmill.runtime.components import open_components
from nightmill.runtime.storage import check_storage, open_storage
from nightmill.settings import Settings, load
from nightmill.store.migrate import migrate
from tests.s3_server import Order, S3Server


def settings_of(folder: Path, **blobs: Any) -> Settings:
    return load(flags={"folder": folder, "blobs": blobs}, environment={})


async def test_without_a_url_blobs_are_in_the_data_folder(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await check_storage(settings)
    blobs, parts = open_storage(settings)
    assert isinstance(blobs.plain, FolderBlobs)
    assert isinstance(parts, FolderParts)
    await parts.close()


async def test_with_a_url_blobs_are_in_the_bucket(tmp_path: Path, s3: S3Server) -> None:
    settings = settings_of(tmp_path, **s3.settings(s3.make_bucket()))
    await check_storage(settings)
    blobs, parts = open_storage(settings)
    assert isinstance(blobs.plain, ObjectBlobs)
    assert isinstance(parts, ObjectParts)
    writer = await blobs.open_writer("files/one")
    await writer.write(b"x")
    await writer.commit()
    assert await blobs.size_bytes("files/one") == 1
    await parts.close()
    await blobs.close()
    assert not (tmp_path / "blobs").exists()


async def test_storage_that_can_not_be_used_is_an_error_before_the_start(
    tmp_path: Path, s3: S3Server
) -> None:
    with pytest.raises(SetupError, match="there is no such bucket"):
        await check_storage(settings_of(tmp_path, **s3.settings("no-such-bucket")))
    with pytest.raises(SetupError, match="for tests in one process"):
        await check_storage(settings_of(tmp_path, url="memory://"))
    s3.order(Order("cut"))
    with pytest.raises(UnavailableError, match="can't be reached"):
        await check_storage(settings_of(tmp_path, **{**s3.settings("any"), "retry_s": 0}))


MISSING = """
import sys
sys.modules["obstore"] = None
from nightmill.runtime.storage import open_storage
from nightmill.errors import SetupError
from nightmill.settings import load
try:
    open_storage(load(flags={"blobs": {"url": "s3://bucket"}}, environment={}))
except SetupError as error:
    print(error)
"""


def test_a_missing_library_is_an_error_that_says_what_to_install() -> None:
    told = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout == "blobs.url names an object store; run: pip install 'nightmill[objects]'\n"


def test_the_library_is_loaded_only_for_a_bucket() -> None:
    modules = "nightmill.runtime.role_process, nightmill.runtime.api_server"
    script = f"import sys, {modules}; sys.exit('obstore' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


async def test_with_a_bucket_maintenance_leaves_the_data_folder_empty(tmp_path: Path, s3: S3Server) -> None:
    (image := tmp_path / "data").mkdir()
    (database := tmp_path / "database").mkdir()
    settings = load(
        flags={
            "folder": image,
            "store": f"sqlite:///{database / 'nightmill.sqlite'}",
            "blobs": s3.settings(s3.make_bucket()),
        },
        environment={},
    )
    await migrate(settings.store_url)
    async with open_components(settings, emit=lambda _: None, notifier=Notifier()) as components:
        await components.maintenance().turn()
    assert list(image.iterdir()) == []
