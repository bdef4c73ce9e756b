"""A half-finished batch, joined in slices: its folder is copied, checked, and joined to the same bytes."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from nightmill.admin.backup import back_up
from nightmill.admin.check import Depth
from nightmill.core.batch import Status
from tests.admin.conftest import PROJECT, DataFolder, Upstream


@dataclass
class Sliced(DataFolder):
    """A data folder whose finalizer cuts every batch into slices where that is possible."""

    @property
    def settings(self):
        settings = super().settings
        finalizer = settings.finalizer.model_copy(update={"slice_bytes": 1_000})
        return settings.model_copy(update={"finalizer": finalizer})


@pytest.fixture
def half_joined(data, unfinished):
    """The folder of a killed server: one batch is answered and cut into slices, and one slice is joined."""
    folder = Sliced(data.path)

    async def is_settled(components):
        return bool(await components.store.batches.settled())

    async def join_one():
        async with folder.open_components_of_folder() as components:
            finalizer = components.finalizer()
            await finalizer.turn()
            await finalizer.turn()
            assert len(await components.store.slices.joined(unfinished)) == 1

    asyncio.run(folder.run_without_finalizer(Upstream(), is_settled))
    asyncio.run(join_one())
    return folder


def piece_of(folder):
    return folder.blobs / folder.ask("SELECT output_blob_key FROM slice WHERE state = 'done'")[0][0]


def run_to_end_with_output_in_pieces(folder):
    async def is_swept(components):
        statuses = {batch.status for batch in (await components.store.batches.list(PROJECT)).items}
        return statuses == {Status.COMPLETED} and not await components.parts.batches()

    folder.run(Upstream(), until=is_swept)
    for key, size_bytes in folder.ask("SELECT blob_key, size_bytes FROM file WHERE blob_key LIKE '%.pieces'"):
        pieces = folder.ask("SELECT blob_key FROM piece WHERE of_blob_key = ? ORDER BY blob_key", key)
        assert sum((folder.blobs / piece).stat().st_size for (piece,) in pieces) == size_bytes
        assert len(pieces) > 1
    checked = folder.check(depth=Depth.DEEP, clock=lambda: time.time() + 7_200)
    assert checked.found == ()
    assert folder.ask("SELECT count(*) FROM piece")[0][0] > 1


def test_a_joined_slice_passes_the_check_and_is_not_joined_again(half_joined):
    assert half_joined.check(depth=Depth.DEEP, clock=lambda: time.time() + 7_200).found == ()
    before = piece_of(half_joined).stat().st_mtime_ns
    joined = piece_of(half_joined)
    run_to_end_with_output_in_pieces(half_joined)
    assert joined.stat().st_mtime_ns == before


def test_a_copy_joins_the_remaining_slices(half_joined, tmp_path):
    result = back_up(half_joined.path, half_joined.settings.store_url, tmp_path / "copy")
    assert result.missing == []
    run_to_end_with_output_in_pieces(Sliced(tmp_path / "copy"))


def test_a_batch_with_a_damaged_slice_is_joined_again_from_the_start(half_joined):
    piece_of(half_joined).unlink()
    checked = half_joined.repair()
    assert [finding.kind for finding in checked.found] == ["slice"]
    assert checked.left == ()
    assert half_joined.ask("SELECT * FROM slice") == []
    run_to_end_with_output_in_pieces(half_joined)


def test_a_batch_with_damaged_answers_is_joined_again_from_the_start(half_joined):
    joined = piece_of(half_joined)
    part = half_joined.parts()[-1]
    part.write_bytes(part.read_bytes()[:-20])
    checked = half_joined.repair()
    assert "part" in [finding.kind for finding in checked.found]
    assert checked.left == ()
    assert half_joined.ask("SELECT * FROM slice") == []
    assert not joined.exists()
    run_to_end_with_output_in_pieces(half_joined)
