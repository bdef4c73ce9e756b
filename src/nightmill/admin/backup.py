"""A copy of the data folder, taken while a server works in it.

Order: keep the warden from deleting; copy the database; then copy what that copy names. Blobs never change
and parts only grow, so whatever happens in between, the copy holds at least what its database counts on.

Promise: under its final name the copy is whole and on stable storage. A server started on it goes on with
every batch; lines that were answered after the backup are sent again. Not its duty: settings and the
upstream's key (they are not in the folder).
"""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nightmill.admin.blob import pieces_of
from nightmill.admin.disk import PARTS, blob_root, parts_of
from nightmill.admin.hold import holding
from nightmill.blobs import is_pieced, reported, sync_folder
from nightmill.errors import SetupError
from nightmill.store.inventory import Inventory
from nightmill.store.snapshot import copy_database, reading

try:
    import fcntl
except ImportError:  # as in `hold`
    fcntl = None

DATABASE = "nightmill.sqlite"
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class BackedUp:
    """What was copied. `missing` names what the database counts on and the folder does not hold whole."""

    destination: Path
    blobs: int = 0
    size_bytes: int = 0
    missing: list[str] = field(default_factory=list)


def back_up(folder: Path, store_url: str, destination: Path) -> BackedUp:
    """Copies the data folder and its database to `destination`.

    Raises:
        SetupError: there is no data folder, or the destination is taken or lies inside of it.
        StorageFullError: there is no room at the destination.
    """
    folder, destination = folder.absolute(), destination.absolute()
    if os.path.lexists(destination):
        raise SetupError(f"{destination} is there already; name a new folder for the backup")
    if destination.resolve().is_relative_to(folder.resolve()):
        raise SetupError(f"{destination} lies in the data folder; name a place outside of it")
    told = BackedUp(destination)
    with reported(f"the backup at {destination}"), holding(folder), _unfinished(destination) as unfinished:
        database = unfinished / DATABASE
        copy_database(store_url, database)
        with reading(database) as inventory:
            copier = _Copier(blob_root(folder), blob_root(unfinished), told)
            for key, size_bytes in _named(inventory):
                copier.copy_blob(key, least_bytes=size_bytes)
            for key, size_bytes in _parts(inventory, blob_root(folder)):
                copier.copy(f"{PARTS}/{key}", least_bytes=size_bytes)
        told.size_bytes += database.stat().st_size
        _sync_tree(unfinished)
        unfinished.rename(destination)
        sync_folder(destination.parent)
    return told


def _named(inventory: Inventory) -> Iterator[tuple[str, int | None]]:
    """Every blob that is needed, and its size where the database knows it."""
    for file in inventory.live_files():
        yield file.blob_key, file.size_bytes
    for part in inventory.pending_parts():
        yield part.blob_key, part.size_bytes
    for joined in inventory.joined_slices():
        for piece in filter(None, (joined.output, joined.error)):
            yield piece.key, piece.size_bytes
    for stored in inventory.unfinished_batches():
        yield stored.batch.input_blob_key, None
        if stored.index_blob_key is not None:
            yield stored.index_blob_key, None


def _parts(inventory: Inventory, root: Path) -> Iterator[tuple[str, int]]:
    """Parts of unfinished batches up to their newest holder's, and how much of them is pinned.

    Parts of later holders hold what was answered after the database was copied: the copy knows nothing of it.
    """
    for stored in inventory.unfinished_batches():
        names = parts_of(root, stored.batch.id)
        tokens: dict[int, int] = {}
        pinned: dict[str, int] = {}
        for result in inventory.segments(stored.batch.id):
            tokens[result.segment.number] = result.token
            pinned |= {part.key: part.length_bytes for part in result.pinned}
        for name in names:
            if name.token <= tokens.get(name.number, -1):
                pinned.setdefault(name.key(stored.batch.id), 0)
        yield from pinned.items()


class _Copier:
    def __init__(self, source: Path, target: Path, told: BackedUp) -> None:
        self._source = source
        self._target = target
        self._told = told
        target.mkdir()

    def copy_blob(self, key: str, *, least_bytes: int | None) -> None:
        if not is_pieced(key):
            self.copy(key, least_bytes=least_bytes)
            return
        self.copy(key, least_bytes=None)
        for piece in pieces_of(self._target, key) or ():
            self.copy(piece.key, least_bytes=piece.size_bytes)

    def copy(self, key: str, *, least_bytes: int | None) -> None:
        """An input file may be named by itself and by a batch; it is copied once."""
        target = self._target / key
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = (self._source / key).open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            self._told.missing.append(key)
            return
        with source:
            copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                size_bytes = _copy_bytes(source.fileno(), copy)
                os.fsync(copy)
            finally:
                os.close(copy)
        self._told.blobs += 1
        self._told.size_bytes += max(size_bytes, 0)
        if size_bytes < (least_bytes or 0):
            self._told.missing.append(key)


def _copy_bytes(source: int, target: int) -> int:
    """How many were copied, -1 when not all of them can be read.

    The kernel copies where it can: on file systems that share blocks, that takes no room.
    """
    copied = 0
    with suppress(OSError, AttributeError):
        while moved := os.copy_file_range(source, target, 1 << 30):
            copied += moved
        if copied:
            return copied
    os.lseek(source, copied, os.SEEK_SET)
    os.lseek(target, copied, os.SEEK_SET)
    while True:
        try:
            chunk = os.read(source, _CHUNK_BYTES)
        except OSError:
            return -1  # a bad sector must not keep all the others from being saved
        if not chunk:
            return copied
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(target, rest) :]
        copied += len(chunk)


@contextmanager
def _unfinished(destination: Path) -> Generator[Path]:
    """A folder beside the destination, ours alone; what an earlier backup left there is cleared."""
    folder = destination.with_name(destination.name + ".tmp")
    with reported(f"the backup at {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(f"another backup is writing {folder}; name another destination") from None
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))
