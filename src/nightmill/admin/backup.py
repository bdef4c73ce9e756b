"""Copies the data folder while a server works in it.

Order: keep maintenance from deleting, copy the database, then copy the blobs that the copied database
references. Blobs never change and parts only grow, so the copy has at least what its database references.

Under its final name the copy is complete and on stable storage. A server started on it continues every batch;
lines that were answered after the backup are sent again. Settings files and the keys in them are not in the
folder and not in the copy. Upstreams that were added at run time are in the database, with their keys, and so
in the copy.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nightmill.admin.blob import pieces_of
from nightmill.admin.delete_lock import no_deletes, take_lock
from nightmill.admin.disk import PARTS, blob_root, parts_of
from nightmill.blobs import is_pieced, reported, sync_folder
from nightmill.errors import SetupError
from nightmill.store.inventory import Inventory
from nightmill.store.snapshot import copy_database, reading

DATABASE = "nightmill.sqlite"
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class BackedUp:
    """What was copied. `missing` has the keys that the database references and the folder lacks or has cut
    short.
    """

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
        raise SetupError(f"{destination} already exists; name a new folder for the backup")
    if destination.resolve().is_relative_to(folder.resolve()):
        raise SetupError(f"{destination} is inside the data folder; name a folder outside of it")
    copied = BackedUp(destination)
    with reported(f"the backup at {destination}"), no_deletes(folder), _unfinished(destination) as unfinished:
        database = unfinished / DATABASE
        copy_database(store_url, database)
        with reading(database) as inventory:
            copier = _Copier(blob_root(folder), blob_root(unfinished), copied)
            for key, size_bytes in _named(inventory):
                copier.copy_blob(key, least_bytes=size_bytes)
            for key, size_bytes in _parts(inventory, blob_root(folder)):
                copier.copy(f"{PARTS}/{key}", least_bytes=size_bytes)
        copied.size_bytes += database.stat().st_size
        _sync_tree(unfinished)
        unfinished.rename(destination)
        sync_folder(destination.parent)
    return copied


def _named(inventory: Inventory) -> Iterator[tuple[str, int | None]]:
    """Every referenced blob, and its size where the database has it."""
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
    for key in inventory.validation_reports():
        yield key, None


def _parts(inventory: Inventory, root: Path) -> Iterator[tuple[str, int]]:
    """Parts of unfinished batches up to the newest token, and the pinned length of each.

    Parts under later tokens have answers that came after the database was copied, so the copy does not need
    them.
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
    def __init__(self, source: Path, target: Path, copied: BackedUp) -> None:
        self._source = source
        self._target = target
        self._copied = copied
        target.mkdir()

    def copy_blob(self, key: str, *, least_bytes: int | None) -> None:
        if not is_pieced(key):
            self.copy(key, least_bytes=least_bytes)
            return
        self.copy(key, least_bytes=None)
        for piece in pieces_of(self._target, key) or ():
            self.copy(piece.key, least_bytes=piece.size_bytes)

    def copy(self, key: str, *, least_bytes: int | None) -> None:
        """Copies one file once: an input file may be referenced by a file row and by a batch."""
        target = self._target / key
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = (self._source / key).open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            self._copied.missing.append(key)
            return
        with source:
            copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                size_bytes = _copy_bytes(source.fileno(), copy)
                os.fsync(copy)
            finally:
                os.close(copy)
        self._copied.blobs += 1
        self._copied.size_bytes += max(size_bytes, 0)
        if size_bytes < (least_bytes or 0):
            self._copied.missing.append(key)


def _copy_bytes(source: int, target: int) -> int:
    """Number of bytes copied, -1 when the source cannot be read to its end.

    The kernel copies where it can: file systems that share blocks then use no extra space.
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
            return -1  # an unreadable sector must not stop the copy of the other files
        if not chunk:
            return copied
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(target, rest) :]
        copied += len(chunk)


@contextmanager
def _unfinished(destination: Path) -> Generator[Path]:
    """A locked folder beside the destination; leftovers of an earlier backup in it are deleted."""
    folder = destination.with_name(destination.name + ".tmp")
    with reported(f"the backup at {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not take_lock(descriptor):
            raise SetupError(f"another backup is writing {folder}; name another destination")
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
