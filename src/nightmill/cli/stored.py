"""Commands that work on the store itself, beside a server or without one.

Their changes are recorded in the audit log under the operator's name.
"""

import getpass
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nightmill.cli import flags
from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill.core.audit import Actor
    from nightmill.settings import Settings
    from nightmill.store import Store

T = TypeVar("T")


def settings_in(folder: Path | None, config: Path | None) -> "Settings":
    return flags.settings_of({"folder": folder}, config)


def require_store(settings: "Settings") -> None:
    if settings.store is None and not settings.folder.is_dir():
        message = f"there is no data folder at {settings.folder}; name the server's with --folder or --config"
        raise SetupError(message)


@asynccontextmanager
async def store_of(settings: "Settings") -> "AsyncGenerator[Store]":
    from nightmill.runtime.storage import open_stored, prepare

    await prepare(settings)
    store = open_stored(settings)
    try:
        yield store
    finally:
        await store.close()


def with_store(folder: Path | None, config: Path | None, work: "Callable[[Store], Awaitable[T]]") -> T:
    """Runs `work` on the existing store; a missing store is an error and is not created."""
    from nightmill.client.local import finished

    settings = settings_in(folder, config)
    require_store(settings)

    async def run() -> T:
        async with store_of(settings) as store:
            return await work(store)

    return finished(run())


def operator() -> "Actor":
    """The user who runs the command, by login name."""
    from nightmill.core.audit import Actor

    try:
        return Actor("operator", getpass.getuser())
    except (OSError, KeyError):  # a container's user may have no name
        return Actor("operator")
