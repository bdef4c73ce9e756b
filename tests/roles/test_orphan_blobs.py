"""A blob without a row is deleted by the second of two sweeps, and no other blob ever is."""

import secrets
import time
from dataclasses import dataclass, replace

import pytest

from nightmill.core.file import File, Purpose, Upload, UploadPart
from nightmill.ids import FileId, PartId, ProjectId, UploadId
from nightmill.roles.orphan_blobs import OrphanSweep

PROJECT = ProjectId("default")
LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    b'"body": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}\n'
)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sweep(mill, clock):
    return OrphanSweep(store=mill.store, blobs=mill.blobs, monotonic=clock, pause_s=3_600.0)


async def keys(mill):
    return {key for folder in ("files", "lines", "uploads") async for key in mill.blobs.keys_under(folder)}


async def put(mill, key):
    writer = await mill.blobs.open_writer(key)
    await writer.write(b"bytes")
    await writer.commit()
    return key


async def add_file(mill, key, name="file-1"):
    now = int(time.time())
    file = File(FileId(name), PROJECT, Purpose.BATCH, "in.jsonl", 5, now, now + 3_600, key)
    return await mill.store.files.add(file)


async def test_an_orphaned_blob_is_deleted_by_the_second_sweep_an_hour_later(mill, sweep, clock):
    made = [await put(mill, key) for key in ("files/file-x", "lines/batch_x/3", "uploads/upload_x/part_x")]
    assert sweep.is_due
    assert await sweep.sweep() == 0
    assert not sweep.is_due
    assert [await mill.blobs.size_bytes(key) for key in made] == [5, 5, 5]
    clock.now = 3_600.0
    assert sweep.is_due
    assert await sweep.sweep() == 3
    assert [await mill.blobs.size_bytes(key) for key in made] == [None, None, None]


async def test_a_blob_whose_row_appears_between_two_sweeps_stays(mill, sweep):
    key = await put(mill, "files/file-late")
    await sweep.sweep()
    await add_file(mill, key)
    assert await sweep.sweep() == 0
    assert await mill.blobs.size_bytes(key) == 5


async def test_blobs_that_a_row_references_stay(mill, sweep):
    await add_file(mill, await put(mill, "files/file-1"))
    await add_file(mill, await put(mill, "files/file-gone"), "file-gone")
    await mill.store.files.delete(PROJECT, FileId("file-gone"))
    batch = await mill.accepted(LINE)
    now = int(time.time())
    upload_id = UploadId("upload_" + secrets.token_hex(16))
    await mill.store.uploads.add(
        Upload(upload_id, PROJECT, Purpose.BATCH, "in", "text/plain", 5, now, now + 3_600)
    )
    part_key = await put(mill, f"uploads/{upload_id}/part_1")
    await mill.store.uploads.add_part(UploadPart(PartId("part_1"), upload_id, 5, now, part_key))

    before = await keys(mill)
    assert batch.input_blob_key in before
    assert len(before) == 5
    for _ in range(3):
        assert await sweep.sweep() == 0
    after = await keys(mill)
    assert after == before


async def test_maintenance_deletes_orphaned_blobs_too(mill):
    await put(mill, "files/file-x")
    maintenance = mill.maintenance()
    maintenance._orphans = OrphanSweep(
        store=mill.store, blobs=mill.blobs, monotonic=time.monotonic, pause_s=0.0
    )
    maintenance._options = replace(maintenance._options, sweep_s=0.0)
    await maintenance.turn()
    await maintenance.turn()
    assert await mill.blobs.size_bytes("files/file-x") is None
