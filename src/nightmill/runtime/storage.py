"""Where bytes lie: in the data folder, or in an object store.

Duty: choose blobs and parts by the settings, and look at a store before anything depends on it. Not its duty:
the store of truth (`start`).
"""

from typing import TYPE_CHECKING

from nightmill.blobs import FolderBlobs, PiecedBlobs
from nightmill.errors import SetupError
from nightmill.parts import FolderParts, Parts
from nightmill.settings import Settings

if TYPE_CHECKING:
    from nightmill.blobs.bucket import Bucket


def open_storage(settings: Settings) -> tuple[PiecedBlobs, Parts]:
    """Opens no connection yet.

    Raises:
        SetupError: the settings name no object store that we know, or its library is missing.
    """
    if settings.blobs.url is not None:
        return _in_a_bucket(settings)
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
    """Raises:
    SetupError: the bucket is missing, the keys don't open it, or it is one that processes can't share.
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


def _in_a_bucket(settings: Settings) -> tuple[PiecedBlobs, Parts]:
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
    """The bucket itself, for those who look after it. `blobs.url` must name one."""
    try:
        from nightmill.blobs.connect import connect  # noqa: PLC0415 - needs an extra
    except ImportError:
        raise SetupError("blobs.url names an object store; run: pip install 'nightmill[objects]'") from None
    return connect(settings.blobs)
