"""`nightmill files`: list, upload, download, delete."""

from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.help import CommandLine
from nightmill.cli.results import STDOUT, download_to
from nightmill.cli.screen import Json, local_time, out, out_json, out_table

FileId = Annotated[str, typer.Argument(metavar="ID", help="The file's id.")]
Purpose = Annotated[
    str | None, typer.Option("--purpose", metavar="PURPOSE", help="Only files of this purpose.")
]

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
        out_table(
            ("ID", "PURPOSE", "BYTES", "CREATED", "EXPIRES", "FILENAME"),
            (
                (
                    file.id,
                    file.purpose,
                    str(file.bytes),
                    local_time(file.created_at),
                    local_time(file.expires_at),
                    file.filename,
                )
                for file in found
            ),
        )


@app.command()
def upload(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="What to upload."),
    ],
    purpose: Annotated[str, typer.Option("--purpose", metavar="PURPOSE", help="What it is for.")] = "batch",
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a file. Prints its id."""
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
