"""Check, repair and backup of a batch that skips invalid lines."""

import asyncio
import json
from dataclasses import replace

import pytest

from nightmill.admin.backup import back_up
from nightmill.admin.check import Depth
from nightmill.core.batch_options import BatchOptions, OnInvalid
from tests.admin.conftest import DataFolder, Upstream, add_batch, request_lines

BAD = b"{broken\n"
ANSWERED = 7


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A killed server's folder with one batch: 20 valid lines, half answered, between 6 invalid ones."""
    lines = request_lines(20).splitlines(keepends=True)
    text = BAD + b"".join(lines[:11]) + BAD * 4 + b"".join(lines[11:]) + BAD
    monkeypatch.setattr("tests.admin.conftest.request_lines", lambda _: text)
    made = DataFolder(tmp_path / "data")

    async def add():
        async with made.open_components_of_folder() as components:
            create = components.store.batches.create
            options = BatchOptions(on_invalid=OnInvalid.SKIP)
            monkeypatch.setattr(
                components.store.batches,
                "create",
                lambda batch, **more: create(replace(batch, options=options), **more),
                raising=False,
            )
            await add_batch(components)

    async def is_half_answered(components):
        (batch,) = (await components.store.batches.list("default", limit=1)).items
        return batch.tally.completed >= ANSWERED

    asyncio.run(add())
    made.run(Upstream(ANSWERED), until=is_half_answered)
    return made


def ends_well(folder):
    folder.run(Upstream())
    ((batch_id, status, total, completed, failed),) = folder.ask(
        "SELECT id, status, total, completed, failed FROM batch"
    )
    assert (status, total, completed, failed) == ("completed", 26, 20, 6)
    rows = folder.outputs(batch_id)
    assert sorted(row["custom_id"] or "" for row in rows) == sorted(
        [""] * 6 + [f"line-{number}" for number in range(20)]
    )
    assert folder.check(depth=Depth.DEEP).found == ()


def test_the_check_finds_nothing_wrong_and_the_batch_goes_on(folder):
    assert folder.check(depth=Depth.DEEP).found == ()
    assert folder.repair().found == ()
    ends_well(folder)


def test_wrong_counts_are_repaired_with_the_invalid_lines_counted(folder):
    with folder.rows() as rows:
        rows.execute("UPDATE batch SET completed = 0, failed = 0")
    assert [str(finding.kind) for finding in folder.repair().found] == ["tally"]
    assert folder.ask("SELECT failed FROM batch") == [(6,)]
    ends_well(folder)


def test_a_backup_has_the_report_and_a_lost_report_is_found(folder, tmp_path):
    result = back_up(folder.path, folder.settings.store_url, tmp_path / "copy")
    assert result.missing == []
    copy = DataFolder(tmp_path / "copy")
    ((key,),) = folder.ask("SELECT report_blob_key FROM batch")
    assert len([json.loads(row) for row in (copy.blobs / key).read_bytes().splitlines()]) == 6
    (folder.blobs / key).unlink()
    (finding,) = folder.check().found
    assert (str(finding.kind), finding.repair) == ("line_index", None)
    assert key in finding.detail
    ends_well(copy)
