"""`nightmill validation` and `nightmill canary`: the invalid lines of a batch, and its first lines."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli.connection import BaseUrl, BatchId, full_batch_id, server
from nightmill.cli.results import STDOUT
from nightmill.cli.screen import Json, out_fields, out_json, say
from nightmill.core.words import counts_text


def validation(
    batch_id: BatchId,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; '-' is stdout.")
    ] = STDOUT,
    base_url: BaseUrl = None,
) -> None:
    """Download the validation report of a batch: a JSON object for each invalid line of its input."""
    with server(base_url) as client:
        batch_id = full_batch_id(client, batch_id)
        if output == STDOUT:
            rows = client.input.copy_validation(batch_id, sys.stdout.buffer)
        else:
            rows = client.input.save_validation(batch_id, output)
    say(f"{rows} invalid lines" if output == STDOUT else f"wrote {output} ({rows} invalid lines)")


def canary(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show how the canary of a batch goes, and what it decided."""
    with server(base_url) as client:
        found = client.input.canary(full_batch_id(client, batch_id))
    if as_json:
        out_json(found)
        return
    done = None
    if found["completed"] is not None:
        done = counts_text(found["lines"], found["completed"], found["failed"])
    out_fields(
        [
            ("id", found["id"]),
            ("status", found["status"]),
            ("canary", found["state"]),
            ("done", done),
            ("may fail", f"{found['max_failed'] * 100:g}%"),
            ("stopped", found["stop_reason"]),
        ]
    )
