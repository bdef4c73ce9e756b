"""`nightmill backup`: copies the data folder, also while a server works in it."""

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

    `nightmill serve --folder DEST` continues from the copy. Lines answered after the backup are sent again.
    """
    settings = flags.settings_of({"folder": folder}, config)
    # Imported here: the database's libraries are slow to import and `--help` does not need them.
    from nightmill.admin.backup import back_up
    from nightmill.admin.disk import kept_folder

    copied = back_up(kept_folder(settings), settings.store_url, destination)
    if as_json:
        out_json(
            {
                "destination": str(copied.destination),
                "blobs": copied.blobs,
                "bytes": copied.size_bytes,
                "missing": copied.missing,
            }
        )
    else:
        out(
            f"{copied.destination} holds {copied.blobs:,} blobs, "
            f"{copied.size_bytes:,} bytes with the database"
        )
    for key in copied.missing:
        say(f"nightmill: {clean(key)} is not whole in the data folder itself; see: nightmill check")
    raise typer.Exit(ExitCode.DAMAGED if copied.missing else ExitCode.OK)
