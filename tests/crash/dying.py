"""The code of a forked process that dies at a failpoint; the fork server imports this module by name."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

from nightmill import failpoints
from nightmill.core.clocks import Clocks
from nightmill.ids import WorkerId
from nightmill.roles.finalizer import Finalizer
from nightmill.roles.intake import Intake
from nightmill.roles.join import Joiner
from nightmill.roles.loop import Notifier
from nightmill.runtime.components import finalizer_options, intake_options
from nightmill.runtime.storage import open_storage
from nightmill.settings import Settings, as_message, from_message, load
from nightmill.store import open_store

Die = Callable[[str, Settings, failpoints.Failpoint, int], int]


def settings_of(folder: Path, *, slice_bytes: int = 1 << 30) -> Settings:
    """The settings for a data folder with store, blobs and parts in it."""
    flags = {
        "folder": folder,
        "finalizer": {"slice_bytes": slice_bytes},
        "worker": {"lines_per_segment": 20, "commit_interval_s": 0.0},
        "retention": {"free_bytes": 0},
    }
    return load(flags=flags, environment={})


@contextmanager
def deaths() -> Generator[Die]:
    """Yields a function: it runs a turn of a role in a forked process, with a failpoint armed for the n-th
    pass, and returns the exit code.
    """
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.dying"])

    def run(role: str, settings: Settings, point: failpoints.Failpoint, nth: int) -> int:
        process = context.Process(target=die_in, args=(role, as_message(settings), point, nth))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        return process.exitcode

    yield run
    from multiprocessing.forkserver import _forkserver

    _forkserver._stop()


def die_in(role: str, message: str, point: failpoints.Failpoint, nth: int) -> None:
    failpoints._passes_left[point] = nth
    asyncio.run(turn(role, from_message(message)))


async def turn(role: str, settings: Settings) -> None:
    """Runs the role until it has no work left, on the store and blobs that the settings name."""
    store = open_store(settings.store_url)
    blobs, parts = open_storage(settings)
    shared = {
        "store": store,
        "blobs": blobs,
        "worker_id": WorkerId(role),
        "notifier": Notifier(),
        "emit": lambda _: None,
    }
    try:
        if role == "intake":
            await Intake(**shared, options=intake_options(settings, store=store), clock=time.time).turn()
        else:
            clocks = Clocks(wall=time.time, monotonic=time.monotonic, random=lambda: 0.5)
            joiner = Joiner(store=store, blobs=blobs, parts=parts, monotonic=time.monotonic)
            options = finalizer_options(settings)
            finalizer = Finalizer(**shared, options=options, joiner=joiner, clocks=clocks)
            while await finalizer.turn() == 0:
                pass
    finally:
        await parts.close()
        await blobs.close()
        await store.close()
