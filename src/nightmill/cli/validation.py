"""`nightmill validation`: the invalid lines of a batch."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli.batches import STDOUT, BaseUrl, BatchId, server
from nightmill.cli.screen import say


def validation(
    batch_id: BatchId,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes; '-' is stdout.")
    ] = STDOUT,
    base_url: BaseUrl = None,
) -> None:
    """Download the validation report of a batch: a JSON object for each invalid line of its input."""
    with server(base_url) as client:
        if output == STDOUT:
            rows = client.input.copy_validation(batch_id, sys.stdout.buffer)
        else:
            rows = client.input.save_validation(batch_id, output)
    say(f"{rows} invalid lines" if output == STDOUT else f"wrote {output} ({rows} invalid lines)")
