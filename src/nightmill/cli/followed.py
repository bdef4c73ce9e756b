"""The part of `nightmill results` that reads a batch while it runs. Only nightmill has what it asks for."""

import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from nightmill.cli.connection import base_url_flag
from nightmill.cli.outcome import ENDED, counts_of
from nightmill.cli.screen import out_json, say
from nightmill.core.words import short_id
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightmill.client import Batch, Client, FollowedLine, WantedResults


def print_followed(client: "Client", batch_id: str, wanted: "WantedResults", *, as_json: bool) -> None:
    """Prints each line as it is answered, until the batch has ended."""
    after = wanted.after
    lines = client.api.follow(batch_id, wanted)
    try:
        for line in lines:
            _print(line, as_json=as_json)
            after = line.cursor
    except KeyboardInterrupt:
        _say_how_to_go_on(client, batch_id, replace(wanted, after=after), as_json=as_json)
        raise
    finally:
        lines.close()
    _say_end(client, batch_id)


def print_so_far(client: "Client", batch_id: str, wanted: "WantedResults", *, as_json: bool) -> None:
    """Prints the lines that are there now."""
    after = wanted.after
    for line in _so_far(client, batch_id, wanted):
        _print(line, as_json=as_json)
        after = line.cursor
    batch = _say_end(client, batch_id)
    if batch.status not in ENDED:
        _say_how_to_go_on(client, batch_id, replace(wanted, after=after), as_json=as_json)


def _so_far(client: "Client", batch_id: str, wanted: "WantedResults") -> "Iterator[FollowedLine]":
    while True:
        page = client.api.results(batch_id, wanted, limit=1_000)
        yield from page.lines
        if not page.has_more or not page.lines:
            return
        wanted = replace(wanted, after=page.cursor)


def _print(line: "FollowedLine", *, as_json: bool) -> None:
    if as_json:
        out_json({"cursor": line.cursor, "outcome": line.outcome, "line": line.row})
        return
    sys.stdout.buffer.write(line.text + b"\n")
    sys.stdout.buffer.flush()


def _say_how_to_go_on(client: "Client", batch_id: str, wanted: "WantedResults", *, as_json: bool) -> None:
    """The command that continues with the same filters behind the last line."""
    filters = [
        *(("--outcome", wanted.outcome) if wanted.outcome else ()),
        *(word for code in wanted.codes for word in ("--code", code)),
        *(word for custom_id in wanted.custom_ids for word in ("--custom-id", custom_id)),
        *(("--json",) if as_json else ()),
        *(("--after", wanted.after) if wanted.after else ()),
    ]
    command = f"nightmill results --follow {short_id(batch_id)}{base_url_flag(client)}"
    say(f"go on with: {' '.join((command, *map(shlex.quote, filters)))}")


def _say_end(client: "Client", batch_id: str) -> "Batch":
    """Says how far the batch is.

    Raises:
        RequestError: it failed validation.
    """
    batch = client.api.retrieve_batch(batch_id)
    if batch.status == "failed":
        raise RequestError(f"{batch_id} failed validation and has no lines; correct them and submit again")
    if counts := counts_of(batch):
        say(f"{batch.status}: {counts}")
    return batch
