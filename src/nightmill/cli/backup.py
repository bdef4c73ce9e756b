"""`nightmill backup`: a copy of the data folder, also while a server works in it."""

from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, clean, out, out_json, say


def backup(
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="A folder that is not there yet; appears when it is whole.")
    ],
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Copy the data folder, also while a server works in it.

    `nightmill serve --folder DEST` goes on from the copy. What was answered after the backup is sent again.
    """
    settings = flags.settings_of({"folder": str(folder) if folder else None}, config)
    # Late: the database's libraries take longer to import than `--help` may take.
    from nightmill.admin.backup import back_up
    from nightmill.admin.disk import kept_folder

    told = back_up(kept_folder(settings), settings.store_url, destination)
    if as_json:
        out_json(
            {
                "destination": str(told.destination),
                "blobs": told.blobs,
                "bytes": told.size_bytes,
                "missing": told.missing,
            }
        )
    else:
        out(f"{told.destination} holds {told.blobs:,} blobs, {told.size_bytes:,} bytes with the database")
    for key in told.missing:
        say(f"nightmill: {clean(key)} is not whole in the data folder itself; see: nightmill check")
    raise typer.Exit(ExitCode.DAMAGED if told.missing else ExitCode.OK)
