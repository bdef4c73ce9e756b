"""Opens the store (SQLite or Postgres) and the place for bytes (data folder or object store) of the settings.

Both are checked before any process works on them. A store of this machine's own is migrated; a store that
other machines share is only inspected, and an error about it is one line that says what to do. Nothing here
waits for a store that is away.
"""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from nightmill.blobs import FolderBlobs, PiecedBlobs
from nightmill.errors import SetupError
from nightmill.parts import FolderParts, Parts
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.steady_clock import steady_clock
from nightmill.settings import Settings
from nightmill.settings.effective import effective_of
from nightmill.store import Store, open_store
from nightmill.store.database_url import sqlite_file
from nightmill.store.migrate import migrate
from nightmill.store.readiness import make_ready

if TYPE_CHECKING:
    from nightmill.blobs.bucket import Bucket


def open_stored(settings: Settings) -> Store:
    """The store, on this process's steady clock. Opens no connection yet."""
    return open_store(settings.store_url, clock=steady_clock, busy_timeout_s=settings.store_timeout_s)


async def prepare(settings: Settings) -> None:
    """Makes sure that the store is fit to work on.

    Raises:
        SetupError: the store is not fit to start on.
        UnavailableError: the store can't be reached.
    """
    if settings.is_embedded:
        await migrate(settings.store_url)
    else:
        await make_ready(settings.store_url, clock=time.time, busy_timeout_s=settings.store_timeout_s)


async def has_stored_upstreams(settings: Settings) -> bool:
    """Whether the store has upstreams that were added at run time and are in effect.

    A store that does not exist yet has none, and is not made. Another one is prepared first.

    Raises:
        SetupError: the store is not fit to start on, or another process uses the folder.
        UnavailableError: the store can't be reached.
    """
    if settings.is_embedded and not sqlite_file(settings.store_url).exists():
        return False
    with locked_folder(settings.folder) if settings.is_embedded else nullcontext():
        await prepare(settings)
    store = open_stored(settings)
    try:
        return bool(effective_of(settings, await store.upstreams.settings()))
    finally:
        await store.close()


def open_storage(settings: Settings) -> tuple[PiecedBlobs, Parts]:
    """The blobs and the parts. Opens no connection yet.

    Raises:
        SetupError: the settings name an object store of an unknown kind, or its library is missing.
    """
    if settings.blobs.url is not None:
        return _open_bucket_storage(settings)
    root = settings.folder.absolute() / "blobs"
    blobs = FolderBlobs(root, watermark_bytes=settings.retention.free_bytes)
    parts = FolderParts(
        root / "parts",
        commit_interval_s=settings.worker.commit_interval_s,
        buffer_bytes=settings.worker.buffer_bytes,
        watermark_bytes=settings.retention.free_bytes,
    )
    return PiecedBlobs(blobs), parts


async def check_storage(settings: Settings) -> None:
    """Makes sure that the bucket can be used, if the settings name one.

    Raises:
        SetupError: the bucket is missing, the keys don't open it, or processes can't share it.
        UnavailableError: the object store can't be reached.
    """
    if settings.blobs.url is None:
        return
    if settings.blobs.url.startswith("memory:"):
        raise SetupError("blobs.url 'memory://' is for tests in one process; name a bucket, or leave it out")
    bucket = open_bucket(settings)
    try:
        await bucket.check()
    finally:
        await bucket.close()


def _open_bucket_storage(settings: Settings) -> tuple[PiecedBlobs, Parts]:
    bucket = open_bucket(settings)
    from nightmill.blobs.objects import ObjectBlobs  # noqa: PLC0415 - needs an extra
    from nightmill.parts.objects import ObjectParts  # noqa: PLC0415 - as above

    blobs = ObjectBlobs(bucket, part_bytes=settings.blobs.multipart_part_bytes)
    parts = ObjectParts(
        bucket,
        interval_s=settings.blobs.part_interval_s,
        part_bytes=settings.blobs.answer_part_bytes,
        buffer_bytes=settings.worker.buffer_bytes,
        puts_at_once=settings.blobs.puts_at_once,
    )
    return PiecedBlobs(blobs), parts


def open_bucket(settings: Settings) -> "Bucket":
    """The bucket itself, for checks and administration. `blobs.url` must name one."""
    try:
        from nightmill.blobs.connect import connect  # noqa: PLC0415 - needs an extra
    except ImportError:
        raise SetupError("blobs.url names an object store; run: pip install 'nightmill[objects]'") from None
    return connect(settings.blobs)
