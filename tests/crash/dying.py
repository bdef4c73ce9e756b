"""What a forked process runs until it dies at a point; in a module of its own, so that it finds it."""

import asyncio
import time
from pathlib import Path

from nightmill import crash
from nightmill.blobs import FolderBlobs
from nightmill.ids import WorkerId
from nightmill.parts import FolderParts
from nightmill.roles.finalizer import Finalizer
from nightmill.roles.intake import Intake
from nightmill.roles.loop import Bell
from nightmill.settings import load
from nightmill.store.sql import open_store


def die_in(role: str, folder: Path, point: crash.Point, nth: int) -> None:
    """One turn of the role over the folder, with the point armed for its n-th pass."""
    crash._passes_left[point] = nth
    asyncio.run(turn(role, folder))


async def turn(role: str, folder: Path) -> None:
    flags = {"folder": folder, "worker": {"lines_per_segment": 20}}
    settings = load(flags=flags, environment={})
    root = folder / "blobs"
    store = open_store(settings.store_url)
    parts = FolderParts(root / "parts", commit_interval_s=0.0, buffer_bytes=1)
    shared = {
        "store": store,
        "blobs": FolderBlobs(root, watermark_bytes=0),
        "settings": settings,
        "worker_id": WorkerId(role),
        "bell": Bell(),
        "emit": lambda _: None,
        "clock": time.time,
    }
    try:
        if role == "intake":
            await Intake(**shared).turn()
        else:
            await Finalizer(**shared, parts=parts, monotonic=time.monotonic).turn()
    finally:
        await parts.close()
        await store.close()
