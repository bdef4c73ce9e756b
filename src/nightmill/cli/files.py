"""`nightmill files`: list, upload, download, delete."""

import time
from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.help import CommandLine
from nightmill.cli.results import STDOUT, download_to
from nightmill.cli.screen import Json, out, out_json, say, terminal_width
from nightmill.cli.table import Column, out_fitted
from nightmill.core.words import duration, with_short_ids

_LEAST_NAME = len("batch_3f2a9c1b…_output.jsonl")

FileId = Annotated[str, typer.Argument(metavar="ID", help="The file's id.")]
Purpose = Annotated[
    str | None, typer.Option("--purpose", metavar="PURPOSE", help="Only files of this purpose.")
]

_INPUT_PURPOSE = "batch"

app = CommandLine("List, upload, download and delete files.")


@app.callback(invoke_without_command=True)
def files(context: typer.Context, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """List, upload, download and delete files. Alone, it lists."""
    if context.invoked_subcommand is None:
        list_files(base_url=base_url, as_json=as_json)


@app.command("list")
def list_files(purpose: Purpose = None, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """List files, newest first."""
    with server(base_url) as client:
        found = client.files(purpose=purpose)
        if as_json:
            out_json(*(file.to_dict(mode="json") for file in found))
            return
        rows = list(found)
    if not rows:
        say(f"there are no files{' of this purpose' if purpose else ''}")
        return
    now = time.time()
    out_fitted(
        [
            Column("ID", [file.id for file in rows]),
            Column("PURPOSE", [file.purpose for file in rows], drop=1),
            Column("BYTES", [str(file.bytes) for file in rows]),
            Column("AGE", [duration(now - file.created_at) for file in rows]),
            Column("EXPIRES IN", [_left(file.expires_at, now) for file in rows], drop=2),
            Column("FILENAME", [with_short_ids(file.filename) for file in rows], least=_LEAST_NAME),
        ],
        terminal_width(),
    )


def _left(stamp: int | None, now: float) -> str:
    return "never" if stamp is None else duration(stamp - now)


@app.command()
def upload(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="What to upload."),
    ],
    purpose: Annotated[
        str, typer.Option("--purpose", metavar="PURPOSE", help="What it is for.")
    ] = _INPUT_PURPOSE,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a file. Prints its id."""
    if purpose == _INPUT_PURPOSE:
        from nightmill.cli.checked_input import refuse_foreign

        refuse_foreign(path, path)
    with server(base_url) as client:
        file = client.upload(path, purpose=purpose)
    if as_json:
        out_json(file.to_dict(mode="json"))
    else:
        out(file.id)


@app.command()
def download(
    file_id: FileId,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; '-' is stdout.")
    ] = STDOUT,
    base_url: BaseUrl = None,
) -> None:
    """Download a file."""
    with server(base_url) as client:
        download_to(output, client, file_id)


@app.command()
def delete(file_id: FileId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Delete a file."""
    with server(base_url) as client:
        deleted = client.openai.files.delete(file_id)
    if as_json:
        out_json(deleted.to_dict(mode="json"))
    else:
        out(f"{deleted.id} is deleted")
