"""`nightmill move`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import Json, out, out_json, say
from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill.admin.move import MoveSummary
    from nightmill.settings import Settings

_MOVED = ".moved"


def move(
    source: Annotated[
        Path,
        typer.Option("--from", metavar="FOLDER", help="The data folder to move from; its server is stopped."),
    ],
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Move everything from a data folder to the Postgres and the blob store that the settings name.

    NIGHTMILL_STORE names the Postgres, which must be empty; NIGHTMILL_BLOBS__URL the bucket, or --folder a
    shared folder. Unfinished batches continue there, and answered lines are not sent again. After an
    interruption, the same command continues.
    """
    target = flags.settings_of({"folder": None if folder is None else str(folder)}, config)
    from nightmill.client.local import finished

    summary = finished(_move(source, target))
    if as_json:
        out_json(asdict(summary))
        return
    rows = ", ".join(f"{count} {name}" for name, count in summary.rows.items() if count)
    blobs = f"{summary.blobs} blobs of {summary.blob_bytes} bytes"
    out(f"moved {rows or 'nothing'}; {blobs}; {summary.answers} answers")
    say(f"the old database is now called nightmill.sqlite{_MOVED}; delete the folder when all is well")


async def _move(folder: Path, target: "Settings") -> "MoveSummary":
    """Moves a data folder to the storage of a fleet, and renames its database.

    Args:
        folder: the data folder with the SQLite database.
        target: settings of the fleet.

    Raises:
        SetupError: there is no such database, the folder is in use, or the new store is not empty.
    """
    from nightmill.admin.move import MoveStorage
    from nightmill.admin.move import move as move_data
    from nightmill.runtime.data_folder_lock import locked_folder
    from nightmill.runtime.storage import check_storage, open_storage, open_stored, prepare

    blobs = target.blobs.model_copy(update={"url": None})
    source = target.model_copy(update={"folder": folder, "store": None, "blobs": blobs})
    database = folder / "nightmill.sqlite"
    if not database.is_file():
        raise SetupError(f"there is no nightmill database at {database}; name the data folder with --from")
    if target.is_embedded:
        raise SetupError("name where to move to: NIGHTMILL_STORE=postgresql://user@host/database")
    with locked_folder(folder):
        await prepare(source)
        await prepare(target)
        await check_storage(target)
        store = open_stored(source)
        old_blobs, old_parts = open_storage(source)
        new_blobs, new_parts = open_storage(target)
        summary = await move_data(
            store,
            MoveStorage(source.store_url, old_blobs.plain, old_parts),
            MoveStorage(target.store_url, new_blobs.plain, new_parts),
            is_same_folder=target.blobs.url is None and _is_same(folder, target.folder),
            say=say,
        )
        # The last connection is closed, so the database file is complete without its write-ahead log.
        database.rename(database.with_name(database.name + _MOVED))
    return summary


def _is_same(folder: Path, other: Path) -> bool:
    return folder.absolute().resolve() == other.absolute().resolve()
