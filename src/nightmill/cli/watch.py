"""`watch`: the progress of batches until they have ended.

Without a terminal it prints a line from time to time. Bars and sentences belong to `client.progress`, polling
to `client.watching`.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli.connection import BaseUrl, base_url_flag, full_batch_ids, server
from nightmill.cli.failures import ExitCode, end_code
from nightmill.cli.outcome import say_next, tell_errors
from nightmill.cli.screen import Json, out, out_json, say
from nightmill.core.words import short_id

if TYPE_CHECKING:
    from nightmill.client import Batch, Client

_NAMED = 5


def watch(
    batch_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID...]",
            help="The batches' ids, the beginnings of them, or 'latest' [all that are unfinished].",
        ),
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show progress until the batches have ended. The exit code depends on their status.

    Ctrl-C ends the command only: batches go on on the server.
    """
    with server(base_url) as client:
        from nightmill.client.watching import unfinished_ids

        wanted = full_batch_ids(client, batch_ids) if batch_ids else unfinished_ids(client.openai)
        if not wanted:
            say("every batch has ended; list them with: nightmill list")
            return
        watched(client, *wanted, as_json=as_json)


def watched(client: "Client", *batch_ids: str, as_json: bool) -> None:
    """Shows the batches until all have ended, then says what to type next; ends the command."""
    from nightmill.client import progress, watching

    try:
        with progress.shown_all() as show:
            batches = watching.watch(client.openai, batch_ids, show)
    except KeyboardInterrupt:
        names = " ".join(map(short_id, batch_ids)) if len(batch_ids) <= _NAMED else ""
        goes_on = "the batch continues" if len(batch_ids) == 1 else "the batches continue"
        say(f"nightmill: stopped; {goes_on} on the server")
        say(f"watch again with: {' '.join(filter(None, ('nightmill watch', names)))}{base_url_flag(client)}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        out_json(*(batch.to_dict(mode="json") for batch in batches))
    else:
        is_shown = len(batches) == 1 and sys.stderr.isatty()
        for batch in batches:
            tell_errors(batch)
            out(f"{batch.id} is {batch.status}")
            say_next(client, batch, with_failures=not is_shown)
    raise typer.Exit(max(map(_end_code, batches)))


def _end_code(batch: "Batch") -> ExitCode:
    return end_code(batch.status, batch.request_counts.failed if batch.request_counts else 0)
