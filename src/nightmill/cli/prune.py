"""`nightmill prune`: deletes old files of batches, and removes the rows of old batches."""

import re
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nightmill.cli import flags, stored
from nightmill.cli.screen import Json, out, out_json, say
from nightmill.errors import RequestError, SetupError

if TYPE_CHECKING:
    from nightmill.admin.prune import Pruned
    from nightmill.settings import Settings
    from nightmill.store.pruning import OldObjects

_AGE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([hdw])")
_UNIT_S: Final = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


def prune(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="How old: a number and h, d or w, such as 30d.")
    ],
    project: Annotated[
        str | None, typer.Option("--project", metavar="PROJECT", help="Of this project only.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Delete old files of batches, and remove the rows of batches that ended long ago.

    Input, output and error files created before the given age are deleted, then the rows of batches that
    ended before it, and of deleted files. Unfinished batches, everything under legal hold, and the totals of
    `nightmill usage` stay. A server may be running; it deletes the bytes within seconds. Without one, the
    database file is made smaller too. The setting retention.rows_kept_s does it all the time (docs/disk.md).
    """
    kept_s = _seconds(older_than)
    settings = stored.settings_in(folder, config)
    stored.require_store(settings)
    found = _counted(settings, kept_s, project)
    if dry_run:
        _show_found(found, as_json=as_json)
        return
    if not yes and (found.files or found.batches):
        _confirm(found)
    _show_pruned(settings, *_pruned(settings, kept_s, project), as_json=as_json)


def _counted(settings: "Settings", kept_s: float, project: str | None) -> "OldObjects":
    from nightmill.client.local import finished

    async def count() -> "OldObjects":
        async with stored.store_of(settings) as store:
            return await store.pruning.old(kept_s=kept_s, project_id=project)

    return finished(count())


def _pruned(settings: "Settings", kept_s: float, project: str | None) -> "tuple[Pruned, int | None]":
    """What was removed, and the bytes by which the database file shrank; None while a server runs."""
    from nightmill.admin.prune import prune as pruned
    from nightmill.client.local import finished
    from nightmill.runtime.storage import open_storage
    from nightmill.store.database_url import sqlite_file
    from nightmill.store.sqlite import compact

    with ExitStack() as stack:
        is_alone = _is_alone(settings, stack)

        async def work() -> "Pruned":
            storage = open_storage(settings) if is_alone else None
            try:
                async with stored.store_of(settings) as store:
                    return await pruned(
                        store, storage, kept_s=kept_s, project_id=project, by=stored.operator()
                    )
            finally:
                if storage is not None:
                    await storage[1].close()

        done = finished(work())
        freed_bytes = compact(sqlite_file(settings.store_url)) if is_alone else None
    return done, freed_bytes


def _is_alone(settings: "Settings", stack: ExitStack) -> bool:
    """Whether no server and no backup uses the data folder; none can begin until the stack ends."""
    from nightmill.admin.delete_lock import may_delete
    from nightmill.runtime.data_folder_lock import locked_folder

    if not settings.is_embedded:
        return False
    try:
        stack.enter_context(locked_folder(settings.folder))
    except SetupError:
        return False
    return stack.enter_context(may_delete(settings.folder))


def _confirm(found: "OldObjects") -> None:
    if not sys.stdin.isatty():
        raise RequestError(f"this would delete {_words(found)}; add --yes to do it, or --dry-run to count")
    if not typer.confirm(f"delete {_words(found)}?", err=True):
        raise RequestError("nothing was deleted")


def _show_found(found: "OldObjects", *, as_json: bool) -> None:
    if as_json:
        out_json(asdict(found))
    else:
        out(f"would delete {_words(found)}")


def _show_pruned(settings: "Settings", done: "Pruned", freed_bytes: int | None, *, as_json: bool) -> None:
    if as_json:
        out_json({**asdict(done), "database_freed_bytes": freed_bytes})
        return
    batches, rows = _count(done.batches, "batch", "batches"), _count(done.rows, "deleted file")
    out(f"deleted {_count(done.files, 'file')}, and the rows of {batches} and {rows}")
    if freed_bytes is not None:
        say(f"the database file is {size_text(max(0, freed_bytes))} smaller")
    elif settings.is_embedded:
        sweep_s = settings.retention.sweep_s
        say(f"the server that runs here deletes the files' bytes within {sweep_s:g} s;")
        say("to make the database file smaller, stop the server and run this again")
    else:
        say("the servers of the fleet delete the files' bytes at their next sweep")


def _words(found: "OldObjects") -> str:
    files = f"{_count(found.files, 'file')} ({size_text(found.file_bytes)})"
    return f"{files} and the rows of {_count(found.batches, 'ended batch', 'ended batches')}"


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def size_text(size_bytes: float) -> str:
    """`1,234,567` -> `1.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1_000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1_000
    return f"{size_bytes:.1f} TB"


def _seconds(age: str) -> float:
    found: Any = _AGE.fullmatch(age)
    if found is None:
        raise RequestError(f"--older-than wants a number and h, d or w, such as 30d, and not '{age}'")
    return float(found[1]) * _UNIT_S[found[2]]
