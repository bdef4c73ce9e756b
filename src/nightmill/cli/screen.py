"""Output of the commands: results on stdout, everything else on stderr.

Text from a server or a file never moves the cursor, and a table looks the same in a pipe. Progress belongs to
`client.progress`, failures to `failures`.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from nightmill.client.words import clean

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def say(text: str) -> None:
    """Prints one line on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the command's own voice


def out(text: str) -> None:
    """Prints one line of result on stdout."""
    print(text, flush=True)  # noqa: T201 - as above


def out_json(*values: Any) -> None:
    """Prints each document on one line, so that several of them are JSON lines."""
    for value in values:
        out(json.dumps(value))


def out_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    cells = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        out("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def out_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Prints names and values, one pair on a line; pairs without a value are left out."""
    shown = [(name, clean(value)) for name, value in fields if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        out(f"{name.ljust(width)}  {value}")


def local_time(stamp: int | None) -> str:
    """A Unix time in the local time zone; empty for None."""
    return datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else ""
