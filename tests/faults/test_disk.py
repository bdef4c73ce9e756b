"""A real disk that runs full, turns read-only, or has no descriptors left, below a real server."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Rogue, rogue_in_a_thread, well
from tests.faults.served import Served, assert_each_line_once, request_lines, serving
from tests.slow import only_slow

MIB = 1 << 20
LINES = 400


def _mounts() -> bool:
    """Whether a disk of our own can be mounted here: as root, or in a user namespace."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(not _mounts(), reason="no file system can be mounted here")


class SmallDisk:
    """A file system of `size_bytes`, mounted for the server alone and reached through its process."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes
        self._served: Served | None = None

    @contextlib.contextmanager
    def serving(self, rogue: Rogue, **settings: Any) -> Iterator[Served]:
        mount = f'mount -t tmpfs -o size={self._size_bytes} none "$0" && exec "$@"'

        def wrap(words: list[str]) -> list[str]:
            return ["unshare", "-rm", "sh", "-c", mount, str(self.folder), *words]

        flags = ("--upstream", rogue.url, "--concurrency", "4")
        fast = {"worker__beat_s": 0.1, "worker__lines_per_segment": 20, "retention__sweep_s": 0.2}
        with serving(self.folder, flags=flags, wrap=wrap, **(fast | settings)) as self._served:
            yield self._served

    def inside(self, name: str) -> Path:
        assert self._served is not None
        return Path(f"/proc/{self._served.process.pid}/root{self.folder}/{name}")

    def fill(self, *, leaving_bytes: int) -> None:
        room = os.statvfs(self.inside("."))
        length = room.f_bavail * room.f_frsize - leaving_bytes
        # Another process may take the last bytes: a write fails then, and so does the close.
        with contextlib.suppress(OSError), self.inside("filler").open("ab") as filler:
            while length > 0:
                length -= filler.write(bytes(min(length, MIB)))
                filler.flush()

    def make_room(self) -> None:
        self.inside("filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    folder = tmp_path / "disk"
    folder.mkdir()
    return SmallDisk(folder, 96 * MIB)


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    with rogue_in_a_thread() as rogue:
        rogue.always = lambda it: (0.01, *well(it))
        yield rogue


def until_quiet(rogue: Rogue) -> int:
    """How many requests there were when no more came for a while."""
    deadline = time.monotonic() + 60
    while True:
        asked = rogue.asked.total()
        time.sleep(0.7)
        if rogue.asked.total() == asked:
            return asked
        assert time.monotonic() < deadline


def assert_envelope(document: Any, headers: dict[str, str]) -> None:
    assert list(document["error"]) == ["message", "type", "param", "code"]
    assert document["error"]["type"] == "server_error"
    assert int(headers["retry-after"]) > 0


@needs_mounts
def test_below_the_watermark_uploads_are_refused_and_batches_wait_for_room(disk: SmallDisk, rogue: Rogue):
    with disk.serving(rogue, retention__free_bytes=32 * MIB) as served:
        batch_id = served.batch(request_lines(LINES))
        _, _, waiting = served.upload(request_lines(3))
        served.until(batch_id, lambda batch: batch["request_counts"]["completed"] > 20)
        disk.fill(leaving_bytes=20 * MIB)

        served.until_logged("every batch waits, for answers can't be written")
        asked = until_quiet(rogue)
        assert asked < LINES
        trouble = served.send("GET", "/ready")[2]["trouble"]
        assert "the disk has" in trouble
        assert "32 MiB are kept free" in trouble
        # What was answered is on disk, counts, and its lease lives on.
        served.until(batch_id, lambda batch: batch["request_counts"]["completed"] == asked)
        status, headers, document = served.upload(request_lines(50))
        assert status == 507
        assert_envelope(document, headers)
        assert "make room" in document["error"]["message"]
        # All that takes no room goes on, and so does what takes a little.
        assert served.send("GET", "/v1/files")[0] == 200
        status, _, second = served.create(waiting["id"])
        assert status == 200
        assert until_quiet(rogue) == asked

        disk.make_room()
        ended = served.until_ended(batch_id)
        assert ended["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert_each_line_once(served.rows(ended), LINES)
        assert served.until_ended(second["id"])["request_counts"]["completed"] == 3
        served.until_logged("answers are written again")
        served.until_no_problem_is_shown()
        # Nothing was sent twice for it: line-0 to line-2 belong to both batches.
        assert rogue.asked.total() == LINES + 3
        assert not any("the lease under token" in line for line in served.log_lines)


@needs_mounts
def test_a_disk_that_is_really_full_corrupts_nothing(disk: SmallDisk, rogue: Rogue):
    """Without a watermark: every write of every kind meets the end of the disk."""
    with disk.serving(rogue, retention__free_bytes=0) as served:
        batch_id = served.batch(request_lines(LINES))
        served.until(batch_id, lambda batch: batch["request_counts"]["completed"] > 20)
        for _ in range(3):
            disk.fill(leaving_bytes=0)
            time.sleep(0.2)
        until_quiet(rogue)
        assert rogue.asked.total() < LINES
        status, headers, document = served.upload(request_lines(50))
        assert status in (503, 507)
        assert_envelope(document, headers)
        assert served.see(batch_id)["status"] == "in_progress"

        disk.make_room()
        ended = served.until_ended(batch_id, timeout_s=90)
        assert ended["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert_each_line_once(served.rows(ended), LINES)
        assert served.upload(request_lines(50))[0] == 200


@needs_mounts
def test_a_folder_that_turns_read_only_pauses_everything_until_it_is_writable(disk: SmallDisk, rogue: Rogue):
    def inside(served: Served, order: str) -> None:
        """Mounts for the server only; what it has open already stays as it was."""
        words = ["nsenter", "-t", str(served.process.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*words, "sh", "-c", order, str(disk.folder / "blobs")], check=True)

    with disk.serving(rogue, retention__free_bytes=0) as served:
        batch_id = served.batch(request_lines(LINES))
        served.until(batch_id, lambda batch: batch["request_counts"]["completed"] > 20)
        inside(served, 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"')
        status, headers, document = served.upload(request_lines(50))
        assert status == 503
        assert_envelope(document, headers)
        assert "Read-only" in document["error"]["message"]
        served.until_logged("every batch waits, for answers can't be written")
        assert until_quiet(rogue) < LINES
        inside(served, 'umount "$0"')
        ended = served.until_ended(batch_id)
        assert ended["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert_each_line_once(served.rows(ended), LINES)
        assert rogue.asked.total() == LINES


def limited(**limits: int) -> Any:
    """Puts `ulimit` before a command line."""
    orders = "; ".join(f"ulimit -{letter} {value}" for letter, value in limits.items())
    return lambda words: ["sh", "-c", f'{orders}; exec "$@"', "sh", *words]


def test_files_that_may_not_grow_stop_nothing_but_the_growing(tmp_path: Path, rogue: Rogue):
    """RLIMIT_FSIZE: needs no mounts. The limit is in blocks of 512 bytes, or 1024 with some shells."""
    flags = ("--upstream", rogue.url, "--concurrency", "4")
    settings = {"worker__beat_s": 0.1, "retention__free_bytes": 0}
    with serving(tmp_path, flags=flags, wrap=limited(f=4_096), **settings) as served:
        too_much = request_lines(2, padding=5 * MIB)
        status, headers, document = served.upload(too_much)
        assert status == 507
        assert_envelope(document, headers)
        ended = served.until_ended(served.batch(request_lines(100)))
        assert ended["request_counts"]["completed"] == 100
    assert not list((tmp_path / "blobs" / "tmp").iterdir())


def test_too_many_open_files_delay_but_break_nothing(tmp_path: Path, rogue: Rogue):
    """Few descriptors for every process, and clients that take up those of the API."""
    import socket

    flags = ("--upstream", rogue.url, "--concurrency", "8")
    settings = {"worker__beat_s": 0.1, "worker__lines_per_segment": 5, "retention__free_bytes": 0}
    with serving(tmp_path, flags=flags, wrap=limited(n=48), **settings) as served:
        batch_id = served.batch(request_lines(200))
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            time.sleep(1.5)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if served.send("GET", "/health")[0] == 200:
                    break
            assert time.monotonic() < deadline
        ended = served.until_ended(batch_id)
        assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
        assert_each_line_once(served.rows(ended), 200)
        assert rogue.asked.total() == 200


HOLD = """
import sys
try:
    import pysqlite3.dbapi2 as sqlite3
except ImportError:
    import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process, a backup tool perhaps, holds the database for writing."""
    import sys

    words = [sys.executable, "-c", HOLD, str(folder / "nightmill.sqlite")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(60)


@only_slow
def test_a_database_that_another_process_locks_for_seconds_delays_but_loses_nothing(
    tmp_path: Path, rogue: Rogue
):
    flags = ("--upstream", rogue.url, "--concurrency", "4")
    settings = {"worker__beat_s": 0.1, "worker__lines_per_segment": 20}
    with serving(tmp_path, flags=flags, **settings) as served:
        batch_id = served.batch(request_lines(LINES))
        _, _, file = served.upload(request_lines(2))
        served.until(batch_id, lambda batch: batch["request_counts"]["completed"] > 20)
        with locked(tmp_path):
            status, headers, document = served.create(file["id"])
            assert status == 503
            assert_envelope(document, headers)
            assert served.see(batch_id)["status"] == "in_progress"
        status, _, second = served.create(file["id"])
        assert status == 200
        assert_each_line_once(served.rows(served.until_ended(second["id"])), 2)
        ended = served.until_ended(batch_id)
        assert ended["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert_each_line_once(served.rows(ended), LINES)
        # Its leases lived through it: no line was sent again.
        assert rogue.asked.total() == LINES + 2
