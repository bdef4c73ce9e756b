"""Commands that work on the store itself, beside a server or without one.

Their changes are recorded in the audit log under the operator's name.
"""

import getpass
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nightmill.cli import flags
from nightmill.cli.screen import say
from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill.core.audit import Actor
    from nightmill.settings import Settings
    from nightmill.store import Store

T = TypeVar("T")


def settings_in(folder: Path | None, config: Path | None) -> "Settings":
    return flags.settings_of({"folder": folder}, config)


def require_store(settings: "Settings") -> None:
    """Raises SetupError when there is no data folder yet."""
    if settings.store is None and not settings.folder.is_dir():
        raise _no_folder(settings)


def require_or_make_store(settings: "Settings") -> None:
    """Makes the data folder if it was named, and says so: a mistyped name is seen.

    Raises:
        SetupError: there is none at the default place, where a new one would be a second one by mistake.
    """
    if settings.store is not None or settings.folder.is_dir():
        return
    if "folder" not in settings.model_fields_set:
        raise _no_folder(settings)
    try:
        settings.folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise SetupError(
            f"can't make the data folder {settings.folder.absolute()}: {error.strerror}"
        ) from None
    say(f"made the data folder {settings.folder.absolute()}")


def _no_folder(settings: "Settings") -> SetupError:
    place = settings.folder.absolute()
    return SetupError(f"there is no data folder at {place}; name the server's with --folder or --config")


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
