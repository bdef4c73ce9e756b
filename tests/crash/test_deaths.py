"""Intake and finalizer are killed at every failpoint; the next process writes the same bytes."""

import asyncio
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightmill.admin.blob import blob_chunks, pieces_of
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.outcome import Answered
from nightmill.errors import LeaseLost
from nightmill.failpoints import Failpoint
from nightmill.roles.finalizer import joined_file_id
from nightmill.store import open_store
from tests.crash.dying import Die, deaths, settings_of, turn
from tests.roles.conftest import ENDPOINT, LIMIT_S, PROJECT, Mill, request_lines
from tests.slow import only_slow

LINES = 70
BLOB: tuple[Failpoint, ...] = ("blob.opened", "blob.written", "blob.synced", "blob.renamed", "blob.named")
FINALIZER: tuple[Failpoint, ...] = (
    "finalizer.before_settle",
    "finalizer.settled",
    "finalizer.leased",
    "finalizer.before_output",
    "finalizer.output_done",
    "finalizer.error_done",
    "finalizer.before_publish",
    "finalizer.published",
)
SLICES: tuple[Failpoint, ...] = (
    "finalizer.before_cut",
    "finalizer.cut",
    "finalizer.slice_leased",
    "finalizer.before_slice",
    "finalizer.slice_joined",
)
INTAKE: tuple[Failpoint, ...] = (
    "intake.leased",
    "intake.indexed",
    "intake.before_accept",
    "intake.accepted",
)


@pytest.fixture(scope="session")
def die() -> Iterator[Die]:
    with deaths() as die:
        yield die


async def settled(mill: Mill) -> Batch:
    """A batch that is not finalized yet; every line is answered, some with an error."""
    batch = await mill.accepted(request_lines(LINES))

    async def send(_: str, body: bytes) -> Answered:
        return Answered(400 if body.endswith(b'7"}]}') else 200, b'{"choices":[],"of":%d}' % len(body), "r")

    parts = mill.parts()
    worker = mill.worker(send, parts=parts)
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop, grace_s=lambda: 5.0))
    async with asyncio.timeout(LIMIT_S):
        while not await mill.store.batches.settled():
            await mill.notifier.wait(since=mill.notifier.count, timeout_s=0.02)
    stop.set()
    mill.notifier.notify()
    await running
    await parts.close()
    return await mill.now(batch)


async def seen_after(folder: Path, batch: Batch) -> tuple[Batch, dict[str, bytes]]:
    """The batch as a client sees it, without its end timestamps, and the bytes of its files by name."""
    store = open_store(settings_of(folder).store_url)
    try:
        now = await store.batches.get(PROJECT, batch.id)
        assert now is not None
        files: dict[str, bytes] = {}
        for file_id in (now.output_file_id, now.error_file_id):
            if file_id is not None:
                file = await store.files.get(PROJECT, file_id)
                assert file is not None
                content = b"".join(blob_chunks(folder / "blobs", file.blob_key))
                assert len(content) == file.size_bytes
                files[file.filename] = content
        return now, files
    finally:
        await store.close()


async def restart(folder: Path) -> None:
    store = open_store(settings_of(folder).store_url)
    await store.leases.release_all()
    await store.close()


async def test_after_a_finalizer_is_killed_at_any_failpoint_the_next_one_writes_the_same_bytes(
    mill: Mill, tmp_path: Path, die: Die
) -> None:
    batch = await settled(mill)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "data", whole)
    await turn("finalizer", settings_of(whole))
    right, right_files = await seen_after(whole, batch)
    assert right.status is Status.COMPLETED
    assert right.tally.completed == LINES - 7
    assert [text.count(b"\n") for text in right_files.values()] == [LINES - 7, 7]

    deaths = [(point, 1) for point in FINALIZER] + [(point, nth) for point in BLOB for nth in (1, 2)]
    for point, nth in deaths:
        folder = tmp_path / f"{point}.{nth}"
        shutil.copytree(tmp_path / "data", folder)
        assert die("finalizer", settings_of(folder), point, nth) == -signal.SIGKILL, point
        at_death, files_at_death = await seen_after(folder, batch)
        assert at_death.status.is_terminal == (point == "finalizer.published"), point
        assert at_death.status.is_terminal or not files_at_death
        await restart(folder)
        await turn("finalizer", settings_of(folder))
        found, files = await seen_after(folder, batch)
        assert files == right_files, point
        stamps = {"finalizing_at": right.finalizing_at, "completed_at": right.completed_at}
        assert replace(found, **stamps) == right, point
        assert at_death.finalizing_at in (None, found.finalizing_at), point
        left = {path.name for path in (folder / "blobs" / "files").iterdir()}
        assert len(left) == 3, (point, left)  # the input file and the two published files


@only_slow
async def test_after_a_finalizer_of_slices_is_killed_at_any_failpoint_only_one_slice_is_joined_again(
    mill: Mill, tmp_path: Path, die: Die
) -> None:
    batch = await settled(mill)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "data", whole)
    await turn("finalizer", settings_of(whole))
    right, right_files = await seen_after(whole, batch)

    deaths = [(point, 1) for point in (*FINALIZER, *SLICES)]
    deaths += [(point, 4) for point in SLICES[2:]]
    deaths += [(point, nth) for point in ("blob.written", "blob.named") for nth in (1, 2, 9, 10)]
    for point, nth in deaths:
        folder = tmp_path / f"{point}.{nth}"
        shutil.copytree(tmp_path / "data", folder)
        settings = settings_of(folder, slice_bytes=1)  # one slice for each segment
        assert die("finalizer", settings, point, nth) == -signal.SIGKILL, point
        at_death, files_at_death = await seen_after(folder, batch)
        assert at_death.status.is_terminal == (point == "finalizer.published"), point
        assert at_death.status.is_terminal or not files_at_death
        store = open_store(settings.store_url)
        joined = [it.output.key for it in await store.slices.joined(batch.id) if it.output]
        await store.leases.release_all()
        await store.close()
        await turn("finalizer", settings)
        found, files = await seen_after(folder, batch)
        assert files == right_files, point
        stamps = {"finalizing_at": right.finalizing_at, "completed_at": right.completed_at}
        assert replace(found, **stamps) == right, point
        pieces = output_pieces(folder, batch)
        assert len(pieces) == 4, point
        assert set(joined) <= set(pieces), "slices joined before the kill are not joined again"
        left = {path.name for path in (folder / "blobs" / "files").iterdir()}
        assert len(left) == 1 + 2 * (1 + 4), (
            point,
            left,
        )  # the input file, two lists of pieces, and their pieces


def output_pieces(folder: Path, batch: Batch) -> list[str]:
    (path,) = (folder / "blobs" / "files").glob(f"{joined_file_id(batch.id, 'output')}.*.pieces")
    return [piece.key for piece in pieces_of(folder / "blobs", f"files/{path.name}") or ()]


@pytest.mark.parametrize("event", [Event.CANCEL_REQUESTED, Event.LAPSED])
async def test_several_finalizers_write_the_same_bytes_as_one_for_a_stopped_batch(
    mill: Mill, tmp_path: Path, event: Event
) -> None:
    batch = await half_answered(mill)
    now = await mill.now(batch)
    assert await mill.store.batches.move(now.after(event, now=1_800_000_000), expected=now.status)
    ends: list[tuple[Batch, dict[str, bytes]]] = []
    for name, finalizers, slice_bytes in (("one", 1, 1 << 30), ("three", 3, 1)):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "data", folder)
        settings = settings_of(folder, slice_bytes=slice_bytes)
        await asyncio.gather(*(turn("finalizer", settings) for _ in range(finalizers)))
        ends.append(await seen_after(folder, batch))
    (one, one_files), (several, several_files) = ends
    assert one.status is (Status.CANCELLED if event is Event.CANCEL_REQUESTED else Status.EXPIRED)
    assert sum(text.count(b"\n") for text in one_files.values()) == LINES
    assert several_files == one_files
    stamps = {"cancelled_at": one.cancelled_at, "expired_at": one.expired_at}
    assert replace(several, **stamps) == one
    assert len(output_pieces(tmp_path / "three", batch)) > 1


async def half_answered(mill: Mill) -> Batch:
    """A batch with some lines answered, both in done segments and in unfinished ones."""
    batch = await mill.accepted(request_lines(LINES))
    asked = 0

    async def send(_: str, body: bytes) -> Answered:
        nonlocal asked
        asked += 1
        if asked > LINES // 2:
            await asyncio.Event().wait()
        return Answered(400 if body.endswith(b'7"}]}') else 200, b'{"choices":[],"of":%d}' % len(body), "r")

    parts = mill.parts()
    stop = asyncio.Event()
    running = asyncio.create_task(mill.worker(send, parts=parts).run(stop, grace_s=lambda: 0.0))
    async with asyncio.timeout(LIMIT_S):
        while (await mill.now(batch)).tally.answered < LINES // 2:
            await mill.notifier.wait(since=mill.notifier.count, timeout_s=0.02)
    stop.set()
    mill.notifier.notify()
    await running
    await parts.close()
    return batch


async def test_after_an_intake_is_killed_at_any_failpoint_the_next_one_accepts_every_line_once(
    mill: Mill, tmp_path: Path, die: Die
) -> None:
    batch = await mill.batch_of(request_lines(LINES))
    for point in (*INTAKE, *BLOB):
        folder = tmp_path / point
        shutil.copytree(tmp_path / "data", folder)
        assert die("intake", settings_of(folder), point, 1) == -signal.SIGKILL, point
        await restart(folder)
        await turn("intake", settings_of(folder))
        found, _ = await seen_after(folder, batch)
        assert (found.status, found.total, found.endpoint) == (Status.IN_PROGRESS, LINES, ENDPOINT), point
        store = open_store(settings_of(folder).store_url)
        segments = [result.segment for result in await store.segments.results(batch.id)]
        await store.close()
        assert [(one.first, one.count) for one in segments] == [(0, 20), (20, 20), (40, 20), (60, 10)], point
        left = list((folder / "blobs" / "lines" / batch.id).iterdir())
        assert len(left) == 1, point


async def test_a_finalizer_that_resumes_late_does_not_change_published_files(mill: Mill) -> None:
    batch = await settled(mill)
    late, quick = mill.finalizer(), mill.finalizer()
    await late._close_settled_batches()
    lease = await mill.store.batch_leases.lease((Status.FINALIZING,), late._worker_id, ttl_s=60)
    assert lease is not None
    joined = late._joiner.join
    published: list[Batch] = []

    async def overtaken(*arguments: Any, **more: Any) -> Any:
        ends = await joined(*arguments, **more)
        await mill.store.leases.release_all()
        await quick.turn()
        published.append(await mill.now(batch))
        return ends

    late._joiner.join = overtaken
    with pytest.raises(LeaseLost):
        await late._finalize(lease)
    (then,) = published
    assert then.status is Status.COMPLETED
    assert await mill.now(batch) == then
    assert len(await mill.rows(then.output_file_id)) == LINES - 7
    assert len(await mill.rows(then.error_file_id)) == 7
    assert len(list((mill.folder / "files").iterdir())) == 3
