"""`results`: the lines of a batch, after its end or while it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli.connection import BaseUrl, BatchId, base_url_flag, full_batch_id, server
from nightmill.cli.outcome import ENDED, failures_of, tell_errors
from nightmill.cli.screen import Json, clean, out_json, say
from nightmill.core.words import short_id
from nightmill.errors import RequestError, UnavailableError

if TYPE_CHECKING:
    from nightmill.client import Batch, Client

STDOUT = Path("-")


def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the output lines go; '-' is stdout [-]."),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", "-e", metavar="FILE", help="Where the error lines go; '-' is stdout."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="One line for each request: with the answers of its retries.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print each line as it is answered, until the end.")
    ] = False,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="completed|failed", help="Only lines of this outcome.")
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option("--code", metavar="CODE", help="Only lines with this error code or status; repeatable."),
    ] = None,
    custom_id: Annotated[
        list[str] | None, typer.Option("--custom-id", metavar="ID", help="Only this line; repeatable.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="Only lines behind this one.")
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Download the lines of a batch that has ended, or print those of a running one.

    With --follow or one of the filters, lines of both outcomes go to stdout; only nightmill has that.
    """
    if merged:
        if errors is not None or as_json:
            raise RequestError("--merged writes all lines to one place; name a file with -o only")
        save_merged(batch_id, output or STDOUT, base_url)
        return
    if follow or outcome or code or custom_id or after:
        if output is not None or errors is not None:
            raise RequestError("--follow and filters print on stdout; leave -o and -e out")
        _print_wanted(
            batch_id,
            base_url,
            is_followed=follow,
            outcome=outcome,
            codes=code or (),
            custom_ids=custom_id or (),
            after=after,
            as_json=as_json,
        )
        return
    if output is None and errors is None:
        output = STDOUT
    if as_json and STDOUT in (output, errors):
        raise RequestError("--json and lines can't both go to stdout; name files with -o and -e")
    with server(base_url) as client:
        batch = client.api.retrieve_batch(full_batch_id(client, batch_id))
        if batch.status not in ENDED:
            raise UnavailableError(f"{batch.id} is {batch.status}; wait with: nightmill watch {batch.id}")
        if batch.status == "failed":
            tell_errors(batch)
            raise RequestError(
                f"{batch.id} failed validation and has no lines; correct them and submit again"
            )
        document = {
            "batch_id": batch.id,
            "output": _downloaded(client, batch.output_file_id, output, "output"),
            "errors": _downloaded(client, batch.error_file_id, errors, "error"),
        }
        if as_json:
            out_json(document)
        elif batch.error_file_id and errors is None:
            _say_failures(client, batch)


def _say_failures(client: "Client", batch: "Batch") -> None:
    """Which lines are missing in the output, and where they are."""
    counts = batch.request_counts
    left = counts.total - counts.completed - counts.failed if counts else 0
    for text in (
        failures_of(client, batch),
        f"{left:,} {'line' if left == 1 else 'lines'} left" * bool(left),
    ):
        if text:
            say(text)
    say(f"get them with: nightmill results {short_id(batch.id)}{base_url_flag(client)} -e FILE")


def save_merged(batch_id: str, path: Path, base_url: str | None) -> None:
    """Writes the merged result of a batch and its retries to `path`, or to stdout for `STDOUT`."""
    with server(base_url) as client:
        lines = client.retries.merged(full_batch_id(client, batch_id))
        if path == STDOUT:
            for line in lines:
                sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            return
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as stream:
            stream.writelines(line + b"\n" for line in lines)
        partial.replace(path)
    say(f"wrote {path} ({path.stat().st_size:,} bytes)")


def _print_wanted(
    batch_id: str, base_url: str | None, *, is_followed: bool, as_json: bool, **wanted: Any
) -> None:
    from nightmill.cli.followed import print_followed, print_so_far

    if wanted["outcome"] not in (None, "completed", "failed"):
        raise RequestError(f"--outcome is completed or failed, not '{clean(wanted['outcome'])}'")
    with server(base_url) as client:
        from nightmill.client import WantedResults

        show = print_followed if is_followed else print_so_far
        show(client, full_batch_id(client, batch_id), WantedResults(**wanted), as_json=as_json)


def _downloaded(client: "Client", file_id: str | None, path: Path | None, kind: str) -> dict[str, Any] | None:
    if path is None:
        return None
    if file_id is None:
        say(f"there are no {kind} lines")
        return None
    return {"file_id": file_id, "path": str(path), "bytes": download_to(path, client, file_id)}


def download_to(path: Path, client: "Client", file_id: str) -> int:
    """Writes a file to `path`, or to stdout for `STDOUT`; returns its size in bytes."""
    if path == STDOUT:
        from nightmill.client.download import copy

        return copy(client.openai, file_id, sys.stdout.buffer)
    size_bytes = client.save(file_id, path)
    say(f"wrote {path} ({size_bytes:,} bytes)")
    return size_bytes
