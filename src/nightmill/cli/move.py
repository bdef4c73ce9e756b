"""`nightmill move`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import Json, out, out_json, say


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
    from nightmill.runtime.move import MOVED, source_settings
    from nightmill.runtime.move import move as moved

    summary = finished(moved(source_settings(target, source), target, say=say))
    if as_json:
        out_json(asdict(summary))
        return
    rows = ", ".join(f"{count} {name}" for name, count in summary.rows.items() if count)
    blobs = f"{summary.blobs} blobs of {summary.blob_bytes} bytes"
    out(f"moved {rows or 'nothing'}; {blobs}; {summary.answers} answers")
    say(f"the old database is now called nightmill.sqlite{MOVED}; delete the folder when all is well")
