"""FolderBlobs: durable names, flat memory, nothing left behind."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightmill.blobs import FolderBlobs
from nightmill.errors import StorageFullError, UnavailableError

MIB = 1 << 20


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs", watermark_bytes=0)


async def put(blobs: FolderBlobs, key: str, *chunks: bytes) -> None:
    writer = await blobs.open_writer(key)
    for chunk in chunks:
        await writer.write(chunk)
    await writer.commit()


async def everything(blobs: FolderBlobs, key: str) -> bytes:
    return b"".join([chunk async for chunk in blobs.stream(key)])


def unfinished(blobs: FolderBlobs) -> list[Path]:
    return list((blobs.path("x").parent / "tmp").iterdir())


async def test_nothing_is_visible_before_commit_and_nothing_stays_after_abort(blobs: FolderBlobs) -> None:
    writer = await blobs.open_writer("files/one")
    await writer.write(b"x" * (2 * MIB))
    assert await blobs.size_bytes("files/one") is None
    await writer.abort()
    await writer.abort()
    assert await blobs.size_bytes("files/one") is None
    assert unfinished(blobs) == []
    with pytest.raises(ValueError, match="already committed or aborted"):
        await writer.write(b"more")


async def test_a_commit_syncs_the_file_then_renames_it_then_syncs_every_folder_it_touched(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = blobs.path("x").parent
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def seen_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("sync " + ("the file" if name.parent.name == "tmp" else str(name.relative_to(root))))
        fsync(descriptor)

    def seen_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    await put(blobs, "a/b/one", b"bytes")
    assert steps == ["sync the file", "sync .", "sync a", "rename", "sync a/b"]
    steps.clear()
    await put(blobs, "a/b/two", b"bytes")
    assert steps == ["sync the file", "rename", "sync a/b"]


async def test_a_stream_goes_on_after_the_blob_is_deleted(blobs: FolderBlobs) -> None:
    await put(blobs, "one", os.urandom(MIB) * 3)
    whole = await everything(blobs, "one")
    stream = blobs.stream("one", chunk_bytes=MIB)
    pieces = [await anext(stream)]
    await blobs.delete("one")
    assert await blobs.size_bytes("one") is None
    pieces += [piece async for piece in stream]
    assert b"".join(pieces) == whole


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a\\b",
        "a b",
        "a\0",
        "a\n",
        "ä",
        "tmp",
        "tmp/x",
    ],
)
async def test_what_is_not_a_key_is_refused(blobs: FolderBlobs, key: str) -> None:
    with pytest.raises(ValueError, match="is not a blob key"):
        await blobs.open_writer(key)
    with pytest.raises(ValueError, match="is not a blob key"):
        await blobs.delete_under(key)


@given(st.text(alphabet="a./\\-_ \n\0~", max_size=12))
def test_no_text_names_a_place_outside_the_folder(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    root = tmp_path_factory.getbasetemp() / "fenced"
    blobs = FolderBlobs(root, watermark_bytes=0)
    try:
        path = blobs.path(key)
    except ValueError:
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert path.resolve() != root.resolve()
    assert str(path.relative_to(root)) == key


async def test_below_the_watermark_nothing_new_is_taken(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, watermark_bytes=1 << 60)
    with pytest.raises(StorageFullError, match="MiB are kept free"):
        await blobs.open_writer("one")
    assert unfinished(blobs) == []
    assert await blobs.free_bytes() > 0


async def test_the_watermark_holds_while_a_blob_is_being_written(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await blobs.open_writer("one")
    monkeypatch.setattr(blobs, "_watermark_bytes", 1 << 60)
    with pytest.raises(StorageFullError):
        for _ in range(4):
            await writer.write(b"x" * MIB)
    await writer.abort()
    assert unfinished(blobs) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EROFS, UnavailableError),
        (errno.EMFILE, UnavailableError),
        (errno.EIO, UnavailableError),
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
async def test_a_failing_disk_raises_an_error_that_says_so_and_leaves_nothing(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: type[Exception]
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(f"nightmill.blobs.folder.os.{call}", fail)
        writer = None
        with pytest.raises(expected, match="blob files/one") as caught:
            writer = await blobs.open_writer("files/one")
            await writer.write(b"x" * (2 * MIB))
            await writer.commit()
        assert type(caught.value) is expected
        if writer is not None:
            await writer.abort()
    assert await blobs.size_bytes("files/one") is None
    assert unfinished(blobs) == []


async def test_a_cancelled_writer_leaves_nothing(blobs: FolderBlobs) -> None:
    started = asyncio.Event()

    async def upload() -> None:
        writer = await blobs.open_writer("one")
        try:
            while True:
                await writer.write(b"x" * MIB)
                started.set()
        finally:
            await writer.abort()

    upload_task = asyncio.create_task(upload())
    await started.wait()
    upload_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload_task
    assert unfinished(blobs) == []


async def test_abort_lets_a_write_in_flight_finish_before_it_closes_the_file(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    descriptors: list[int] = []
    write = os.write

    def slow_write(descriptor: int, content: memoryview) -> int:
        if len(content) < MIB:
            return write(descriptor, content)  # the event loop's own wake-up calls
        begun.set()
        assert may_go_on.wait(timeout=60)
        descriptors.append(os.fstat(descriptor).st_nlink)
        return write(descriptor, content)

    monkeypatch.setattr("nightmill.blobs.folder.os.write", slow_write)
    writer = await blobs.open_writer("one")
    await writer.write(b"x" * (MIB + 1))
    assert await asyncio.to_thread(begun.wait, 10)
    aborting = asyncio.create_task(writer.abort())
    await asyncio.sleep(0)
    aborting.cancel()
    await asyncio.sleep(0)
    assert not aborting.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await aborting
    assert descriptors == [1]
    assert unfinished(blobs) == []


async def test_a_commit_succeeds_although_its_folder_is_deleted_meanwhile(blobs: FolderBlobs) -> None:
    async def write_all() -> None:
        for number in range(50):
            await put(blobs, f"busy/{number}", b"x")

    async def delete_all() -> None:
        for _ in range(50):
            await blobs.delete_under("busy")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write_all())
        tasks.create_task(delete_all())
    await put(blobs, "busy/last", b"x")
    assert await blobs.size_bytes("busy/last") == 1


KILLED = """
import asyncio, sys
from pathlib import Path
from nightmill.blobs import FolderBlobs

async def main() -> None:
    blobs = FolderBlobs(Path(sys.argv[1]), watermark_bytes=0)
    for number in range(100_000):
        writer = await blobs.open_writer(f"files/{number}")
        await writer.write(b"%d" % number * 100_000)
        await writer.commit()
        print(number, flush=True)

asyncio.run(main())
"""


def killed_after(count: int, root: Path) -> int:
    """Runs the writer, kills it once it has committed `count` blobs, and says how many it committed."""
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        while int(child.stdout.readline()) < count - 1:
            pass
        child.send_signal(signal.SIGKILL)
        committed = count + len(child.stdout.read().splitlines())
        child.wait()
    return committed


async def test_sigkill_leaves_only_whole_blobs_and_a_sweep_takes_the_rest(tmp_path: Path) -> None:
    committed = await asyncio.to_thread(killed_after, 20, tmp_path)
    blobs = FolderBlobs(tmp_path, watermark_bytes=0)
    left = len(unfinished(blobs))
    assert await blobs.sweep_unfinished() == left
    assert unfinished(blobs) == []
    keys = [key async for key in blobs.keys_under("files")]
    assert len(keys) >= committed
    for key in keys:
        number = key.removeprefix("files/").encode()
        assert await everything(blobs, key) == number * 100_000


async def test_the_last_blob_of_a_folder_takes_the_folder_along(tmp_path):
    blobs = FolderBlobs(tmp_path, watermark_bytes=0)
    for key in ("uploads/upload_1/part_1", "uploads/upload_1/part_2", "files/one"):
        writer = await blobs.open_writer(key)
        await writer.write(b"x")
        await writer.commit()
    await blobs.delete("uploads/upload_1/part_1")
    assert (tmp_path / "uploads" / "upload_1").is_dir()
    await blobs.delete("uploads/upload_1/part_2")
    assert not (tmp_path / "uploads" / "upload_1").exists()
    await blobs.delete("files/one")
    assert (tmp_path / "files").is_dir()


async def test_folders_that_come_and_go_lose_no_blob(tmp_path):
    blobs = FolderBlobs(tmp_path, watermark_bytes=0)

    async def put_and_delete(number: int) -> None:
        for turn in range(20):
            key = f"uploads/upload_1/{number}_{turn}"
            writer = await blobs.open_writer(key)
            await writer.write(b"x")
            await writer.commit()
            assert await blobs.size_bytes(key) == 1
            await blobs.delete(key)

    await asyncio.gather(*(put_and_delete(number) for number in range(8)))
    assert not (tmp_path / "uploads" / "upload_1").exists()
