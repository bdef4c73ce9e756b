"""FolderParts: nothing counts before it is durable, nothing durable is lost, nothing torn is read."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.admin.disk import parts_of
from nightmill.core.batch import Tally, Usage
from nightmill.core.output_line import OutputLine
from nightmill.core.segment import PinnedPart, Segment
from nightmill.errors import DamageError, UnavailableError
from nightmill.ids import BatchId
from nightmill.parts import FolderParts, PartRecord

BATCH = BatchId("batch_1")


def segment_of(number: int = 0) -> Segment:
    return Segment(BATCH, number, 0, 500)


def line(number: int, *, is_error: bool = False, usage: Usage | None = None) -> OutputLine:
    return OutputLine(text=b'{"n": %d}\n' % number, is_error=is_error, usage=usage)


async def records(parts: FolderParts, pinned: Sequence[PinnedPart]) -> list[PartRecord]:
    return [record async for some in parts.read(pinned) for record in some]


async def written(parts: FolderParts, count: int, *, token: int = 1) -> PinnedPart:
    writer = parts.open(segment_of(), token)
    for number in range(count):
        writer.append(number, line(number))
    await writer.close()
    assert writer.pinned is not None
    return writer.pinned


def file_of(tmp_path: Path, part: PinnedPart) -> Path:
    return tmp_path / "parts" / part.key


def name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


async def test_nothing_counts_and_no_file_is_made_before_the_commit(
    parts: FolderParts, tmp_path: Path
) -> None:
    writer = parts.open(segment_of(), 1)
    await writer.flush()
    assert writer.pinned is None
    assert list((tmp_path / "parts").iterdir()) == []
    writer.append(0, line(0))
    writer.append(1, line(1))
    assert writer.durable_tally == Tally()
    assert writer.pinned is None
    await writer.flush()
    assert writer.durable_tally.answered == 2


async def test_an_answer_counts_after_the_sync_and_the_sync_runs_in_another_thread(
    parts: FolderParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    counted_at_sync: list[int] = []
    loop_thread = threading.get_ident()
    fdatasync = os.fdatasync

    def seen_fdatasync(descriptor: int) -> None:
        assert threading.get_ident() != loop_thread
        fdatasync(descriptor)
        counted_at_sync.append(writer.durable_tally.answered)

    monkeypatch.setattr(os, "fdatasync", seen_fdatasync)
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.flush()
    assert counted_at_sync == [0]
    assert writer.durable_tally.answered == 1


async def test_a_thousand_answers_of_three_writers_cost_one_sync_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0.05, buffer_bytes=1 << 20)
    synced: list[str] = []
    named: list[str] = []
    fdatasync, fsync = os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(name_of(fd)), fdatasync(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (named.append(name_of(fd)), fsync(fd)))
    writers = [parts.open(segment_of(number), 1) for number in range(3)]
    for ordinal in range(1_000):
        writers[ordinal % 3].append(ordinal, line(ordinal))
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.flush())
    assert len(synced) == len(set(synced)) == 3
    root = str(tmp_path / "parts")
    assert named == [f"{root}/{BATCH}", root]
    named.clear()
    writers[0].append(0, line(0))
    await writers[0].flush()
    assert len(synced) == 4
    assert named == []
    await parts.close()


async def test_without_a_flush_the_answers_of_one_interval_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0.1, buffer_bytes=1 << 20)
    synced: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), fdatasync(fd)))
    writer = parts.open(segment_of(), 1)
    started = time.monotonic()
    for ordinal in range(50):
        writer.append(ordinal, line(ordinal))
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        while writer.pending_count:
            await parts._commit_ended.wait()
    assert writer.durable_tally.answered == 50
    assert len(synced) == 1
    assert time.monotonic() - started >= 0.1
    await parts.close()


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_part_cut_at_any_byte_gives_exactly_the_whole_records_before_the_cut(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = st.integers(0, (1 << 32) - 1)
    outputs = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, (1 << 64) - 1),
                st.builds(
                    OutputLine,
                    text=st.binary(max_size=200),
                    is_error=st.booleans(),
                    usage=st.none() | st.builds(Usage, tokens, tokens, tokens, tokens, tokens),
                ),
                st.booleans(),
            ),
            min_size=1,
            max_size=12,
        )
    )
    ends = [0]
    for _, output, _ in outputs:
        ends.append(ends[-1] + 44 + len(output.text))
    # All values are drawn first: a draw may end the example, and no file may be open then.
    cut = data.draw(st.integers(0, ends[-1]))
    tail = data.draw(st.binary(max_size=100))

    root = tmp_path_factory.mktemp("cut")
    parts = FolderParts(root / "parts", commit_interval_s=0, buffer_bytes=1 << 20)
    try:
        writer = parts.open(segment_of(), 1)
        for ordinal, output, flushes in outputs:
            writer.append(ordinal, output)
            if flushes:
                await writer.flush()
        await writer.close()
        assert writer.pinned is not None
        assert writer.pinned.length_bytes == ends[-1]

        file = root / "parts" / writer.pinned.key
        whole = file.read_bytes()
        goes_on_rightly = whole[cut : cut + 1] == tail[:1]
        file.write_bytes(whole[:cut] + (b"" if goes_on_rightly else tail))
        count = max(place for place, end in enumerate(ends) if end <= cut)
        [found] = await parts.find(segment_of(), below=2) or [PinnedPart(writer.pinned.key, 0)]
        assert found.length_bytes == ends[count]
        expected = [PartRecord(ordinal, output) for ordinal, output, _ in outputs[:count]]
        assert await records(parts, [found]) == expected
    finally:
        await parts.close()


@pytest.mark.parametrize("seed", range(20))
async def test_a_flipped_bit_ends_the_part_before_its_record(
    parts: FolderParts, tmp_path: Path, seed: int
) -> None:
    part = await written(parts, 10)
    file = file_of(tmp_path, part)
    damaged = bytearray(file.read_bytes())
    chance = random.Random(seed)
    place = chance.randrange(len(damaged))
    damaged[place] ^= 1 << chance.randrange(8)
    file.write_bytes(damaged)
    found = await parts.find(segment_of(), below=2)
    length = found[0].length_bytes if found else 0
    assert length <= place
    assert place - length < 44 + len(line(0).text)
    with pytest.raises(DamageError, match=part.key):
        await records(parts, [part])


async def test_the_records_before_the_damage_are_read_before_the_error(
    parts: FolderParts, tmp_path: Path
) -> None:
    part = await written(parts, 5)
    os.truncate(file_of(tmp_path, part), part.length_bytes - 1)
    seen: list[int] = []
    with pytest.raises(DamageError, match=rf"{part.key} is damaged behind byte \d+ of {part.length_bytes}"):
        async for some in parts.read([part]):
            seen += [record.ordinal for record in some]
    assert seen == [0, 1, 2, 3]
    file_of(tmp_path, part).unlink()
    with pytest.raises(DamageError, match=part.key):
        await records(parts, [part])


async def test_a_found_part_is_synced_before_it_is_pinned(
    parts: FolderParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = await written(parts, 1)
    synced: list[str] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(name_of(fd)), fdatasync(fd)))
    await parts.find(segment_of(), below=2)
    assert [name.endswith(part.key) for name in synced] == [True]


async def test_a_file_that_exists_under_the_token_is_left_as_it_is(
    parts: FolderParts, tmp_path: Path
) -> None:
    """A database restored from a backup gives out the same tokens again."""
    older = await written(parts, 3)
    newer = await written(parts, 2)
    assert older.key != newer.key
    assert len(await records(parts, [older])) == 3
    assert len(await records(parts, [newer])) == 2
    assert await parts.find(segment_of(), below=2) == [older, newer]


async def test_the_check_of_a_folder_reads_the_parts_in_the_same_order(
    parts: FolderParts, tmp_path: Path
) -> None:
    for token in (2, 1, 10, 1):
        await written(parts, 1, token=token)
    found = [part.key for part in await parts.find(segment_of(), below=11)]
    assert [name.key(BATCH) for name in parts_of(tmp_path, BATCH)] == found
    assert [key.removeprefix(f"{BATCH}/0.") for key in found] == ["10.part", "2.part", "1.part", "1-1.part"]


async def test_closing_in_the_middle_of_commits_drops_nothing(parts: FolderParts) -> None:
    async def answer(number: int) -> PinnedPart:
        writer = parts.open(segment_of(number), 1)
        chance = random.Random(number)
        for ordinal in range(200):
            writer.append(ordinal, line(ordinal))
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() * 0.004)
        await writer.close()
        assert writer.durable_tally.answered == 200
        assert writer.pinned is not None
        return writer.pinned

    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(answer(number)) for number in range(20)]
    for writer in writers:
        seen = [record.ordinal for record in await records(parts, [writer.result()])]
        assert seen == list(range(200))
    assert parts.queued_bytes == 0
    assert open_files(parts) == []


def open_files(parts: FolderParts) -> list[str]:
    names = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [str(name) for name in names if str(name).startswith(str(parts._root))]


async def test_a_cancelled_close_still_closes_the_file(parts: FolderParts) -> None:
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await writer.flush()
    assert writer.durable_tally.answered == 1
    assert open_files(parts) == []


async def test_room_waits_while_too_much_is_queued(tmp_path: Path) -> None:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=60, buffer_bytes=10_000)
    await parts.room()
    writer = parts.open(segment_of(), 1)
    for ordinal in range(300):
        writer.append(ordinal, line(ordinal))
    assert parts.queued_bytes > 10_000
    async with asyncio.timeout(30):  # far below the interval: a task that waits for room hurries the commit
        await parts.room()
    assert parts.queued_bytes == 0
    assert writer.durable_tally.answered == 300
    await parts.close()


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_while_the_disk_refuses_nothing_counts_and_later_everything_does(
    parts: FolderParts, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = getattr(os, call)

    def refuse(*arguments: object) -> int:
        loop.call_soon_threadsafe(refused.set)
        if call == "pwrite":
            real(arguments[0], bytes(arguments[1])[:7], arguments[2])  # the first 7 bytes are written
        raise OSError(number, os.strerror(number))

    writer = parts.open(segment_of(), 1)
    if call in {"pwrite", "fdatasync"}:
        writer.append(0, line(0))
        await writer.flush()
    before = writer.pinned
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        for ordinal in range(1, 10):
            writer.append(ordinal, line(ordinal))
        async with asyncio.timeout(30):
            await refused.wait()
            while parts.stalled is None:
                await parts._next_commit()
        assert os.strerror(number) in parts.stalled
        assert writer.pinned == before
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await parts.room()
        found = await parts.find(segment_of(), below=2) if call == "pwrite" else []
        assert found == ([before] if call == "pwrite" else [])
        writer.append(10, line(10))
    async with asyncio.timeout(30):
        await parts.room()
        await writer.flush()
    assert parts.stalled is None
    assert writer.pinned is not None
    seen = [record.ordinal for record in await records(parts, [writer.pinned])]
    assert seen == list(range(0 if before else 1, 11))


async def test_a_writer_whose_file_could_not_be_made_names_it_later(
    parts: FolderParts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = os.open

    def refuse(path: os.PathLike[str], *arguments: int) -> int:
        if Path(path).name == "1.1.part":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments)

    one, other = parts.open(segment_of(0), 1), parts.open(segment_of(1), 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        one.append(0, line(0))
        other.append(0, line(0))
        await one.flush()
        assert other.pinned is None
        assert "Too many open files" in (parts.stalled or "")
    named: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (named.append(name_of(fd)), fsync(fd)))
    await other.flush()
    assert named == [str(tmp_path / "parts" / BATCH)]


async def test_below_the_watermark_answers_are_still_written_but_room_waits(tmp_path: Path) -> None:
    parts = FolderParts(
        tmp_path / "parts", commit_interval_s=0, buffer_bytes=1 << 20, watermark_bytes=1 << 60, retry_s=0.01
    )
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.flush()
    assert writer.durable_tally.answered == 1
    assert "MiB left" in (parts.stalled or "")
    waiting = asyncio.create_task(parts.room())
    parts._watermark_bytes = 1
    async with asyncio.timeout(30):
        await waiting
    assert parts.stalled is None
    await parts.close()


async def test_closing_on_a_full_disk_says_how_many_answers_were_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0, buffer_bytes=1 << 20, retry_s=60)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = parts.open(segment_of(), 1)
    monkeypatch.setattr(os, "pwrite", refuse)
    writer.append(0, line(0))
    writer.append(1, line(1))
    flushing = asyncio.create_task(writer.flush())
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError, match="2 answers could not be written"):
            await parts.close()
        with pytest.raises(UnavailableError):
            await flushing
    with pytest.raises(ValueError, match="closed"):
        parts.open(segment_of(), 1)


async def test_an_error_in_the_commit_loop_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0, buffer_bytes=1 << 20)

    def shortage() -> str | None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(parts, "_shortage", shortage)
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await asyncio.wait([parts._loop_task])
    with pytest.raises(UnavailableError):
        writer.append(1, line(1))
    with pytest.raises(RuntimeError, match="a bug"):
        await parts.close()


async def test_token_counts_that_do_not_fit_are_bounded(parts: FolderParts) -> None:
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0, usage=Usage(-5, 1, 1 << 80, 2, 3)))
    await writer.flush()
    expected = Usage(0, 1, (1 << 32) - 1, 2, 3)
    assert writer.durable_tally.usage == expected
    assert writer.pinned is not None
    assert [record.output.usage for record in await records(parts, [writer.pinned])] == [expected]


async def test_deleting_a_batch_takes_its_parts_only(parts: FolderParts, tmp_path: Path) -> None:
    part = await written(parts, 1)
    other = tmp_path / "parts" / "batch_2" / "0.1.part"
    other.parent.mkdir()
    other.write_bytes(b"x")
    await parts.delete(BATCH)
    await parts.delete(BATCH)
    assert not file_of(tmp_path, part).parent.exists()
    assert other.exists()
    again = await written(parts, 1)
    assert len(await records(parts, [again])) == 1


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_folder_parts import line, segment_of
from nightmill.parts import FolderParts

async def main() -> None:
    parts = FolderParts(Path(sys.argv[1]), commit_interval_s=0.001, buffer_bytes=1 << 20)

    async def answer(number: int) -> None:
        writer = parts.open(segment_of(number), 1)
        ordinal = 0
        while True:
            for _ in range(1 + ordinal % 7):
                writer.append(ordinal, line(ordinal))
                ordinal += 1
            await writer.flush()
            sys.stdout.write(f"{number} {ordinal}\\n")
            sys.stdout.flush()

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(answer(number))

asyncio.run(main())
"""


def acknowledged_until_killed(root: Path, *, acknowledgements: int) -> dict[int, int]:
    """How many answers of each segment the writer had acknowledged when it was killed."""
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, str(root), folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(acknowledgements)]
        child.send_signal(signal.SIGKILL)
        seen += child.stdout.readlines()
    counts: dict[int, int] = {}
    for acknowledgement in seen:
        number, count = acknowledgement.split()
        counts[int(number)] = int(count)
    return counts


@pytest.mark.parametrize("acknowledgements", [3, 40, 333])
async def test_sigkill_loses_nothing_that_was_acknowledged(
    parts: FolderParts, tmp_path: Path, acknowledgements: int
) -> None:
    acknowledged = await asyncio.to_thread(
        acknowledged_until_killed, tmp_path / "parts", acknowledgements=acknowledgements
    )
    for number, count in acknowledged.items():
        found = await parts.find(segment_of(number), below=2)
        settled = await records(parts, found)
        assert [record.ordinal for record in settled] == list(range(len(settled)))
        assert len(settled) >= count
        assert all(record.output == line(record.ordinal) for record in settled)


LIMITED = """
import asyncio, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_folder_parts import line, segment_of, records
from nightmill.parts import FolderParts

async def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    parts = FolderParts(Path(sys.argv[1]), commit_interval_s=0, buffer_bytes=1 << 20, retry_s=0.01)
    writer = parts.open(segment_of(), 1)
    writer.append(0, line(0))
    await writer.flush()
    for ordinal in range(1, 100):
        writer.append(ordinal, line(ordinal))
    while parts.stalled is None:
        await asyncio.sleep(0.001)
    assert writer.durable_tally.answered == 1
    torn = (Path(sys.argv[1]) / writer.pinned.key).stat().st_size
    assert torn == 1_000, torn
    assert len(await records(parts, await parts.find(segment_of(), below=2))) < 30
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await parts.room()
    await writer.close()
    assert [record.ordinal for record in await records(parts, [writer.pinned])] == list(range(100))
    await parts.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_a_really_torn_write_is_overwritten_when_there_is_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=60)
