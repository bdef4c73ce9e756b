"""Intake and finalizer are killed while a batch skips invalid lines: each line is in one file, once."""

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightmill.core.batch import Batch, Status
from nightmill.failpoints import Failpoint
from tests.crash.dying import Die, deaths, settings_of, turn
from tests.crash.test_deaths import FINALIZER, INTAKE, SLICES, output_pieces, restart, seen_after
from tests.roles.conftest import LIMIT_S, Mill
from tests.roles.test_skipped_lines import SKIP, answer, mixture

LINES = 120


@pytest.fixture(scope="session")
def die() -> Iterator[Die]:
    with deaths() as die:
        yield die


async def settled(mill: Mill, text: bytes) -> Batch:
    """A batch that is not finalized yet and whose every valid line is answered."""
    batch = await mill.accepted(text, options=SKIP)
    parts = mill.parts()
    stop = asyncio.Event()
    running = asyncio.create_task(mill.worker(answer, parts=parts).run(stop, grace_s=lambda: 5.0))
    async with asyncio.timeout(LIMIT_S):
        while not await mill.store.batches.settled():
            await mill.notifier.wait(since=mill.notifier.count, timeout_s=0.02)
    stop.set()
    mill.notifier.notify()
    await running
    await parts.close()
    return await mill.now(batch)


async def test_a_finalizer_that_dies_loses_and_repeats_no_skipped_line_whole_or_in_slices(
    mill: Mill, tmp_path: Path, die: Die
) -> None:
    text, bad, good = mixture(5, LINES)
    refused = {ordinal: name for ordinal, name in good.items() if name.endswith("3")}
    batch = await settled(mill, text)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "data", whole)
    await turn("finalizer", settings_of(whole))
    right, right_files = await seen_after(whole, batch)
    assert (right.status, right.total, right.invalid) == (Status.COMPLETED, LINES, len(bad))
    errors = [json.loads(row) for row in right_files[f"{batch.id}_error.jsonl"].splitlines()]
    assert [row["custom_id"] for row in errors] == [name for _, name in sorted((bad | refused).items())]

    points: list[tuple[Failpoint, int, int]] = []
    points.extend((point, 1, 1 << 30) for point in FINALIZER)
    points.extend((point, 1, 1) for point in (*SLICES, FINALIZER[6]))
    points.extend((point, 3, 1) for point in SLICES[2:])
    for point, nth, slice_bytes in points:
        folder = tmp_path / f"{point}.{nth}.{slice_bytes}"
        shutil.copytree(tmp_path / "data", folder)
        settings = settings_of(folder, slice_bytes=slice_bytes)
        assert die("finalizer", settings, point, nth) == -signal.SIGKILL, point
        await restart(folder)
        await turn("finalizer", settings)
        found, files = await seen_after(folder, batch)
        assert files == right_files, point
        assert found.tally == right.tally, point
        assert slice_bytes > 1 or len(output_pieces(folder, batch)) > 1


async def test_an_intake_that_dies_leaves_one_index_and_one_report(
    mill: Mill, tmp_path: Path, die: Die
) -> None:
    text, bad, _ = mixture(6, LINES)
    batch = await mill.batch_of(text, options=SKIP)
    for point in INTAKE:
        folder = tmp_path / point
        shutil.copytree(tmp_path / "data", folder)
        settings = settings_of(folder)
        assert die("intake", settings, point, 1) == -signal.SIGKILL, point
        await restart(folder)
        await turn("intake", settings)
        found, _ = await seen_after(folder, batch)
        assert (found.status, found.invalid) == (Status.IN_PROGRESS, len(bad)), point
        assert found.report_blob_key is not None
        left = sorted(path.name for path in (folder / "blobs" / "lines" / batch.id).iterdir())
        token = found.report_blob_key.rpartition(".")[2]
        assert left == [token, f"report.{token}"], point
        rows = (folder / "blobs" / found.report_blob_key).read_bytes().splitlines()
        assert len(rows) == len(bad), point
