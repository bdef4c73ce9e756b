"""Output of the commands: results on stdout, everything else on stderr.

Text from a server or a file never moves the cursor. In a pipe, each row and field is one line. Progress
belongs to `client.progress`, failures to `failures`.
"""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, TextIO

import typer

from nightmill.core.words import clean

_NARROWEST = 20
_USUAL = 80
_NO_BREAK = "\x00"
_COMMAND = re.compile(r"(?<!\w)'[^']{1,70}'(?!\w)|`[^`]{1,70}`|(?<=: )nightmill [^;]{1,60}$")
"""What is to be typed: a part of a text in quotes, or its end."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def say(text: str) -> None:
    """Prints one line on stderr. A terminal gets it wrapped between words, but not within a command."""
    print(_fitted(text, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201 - this is the command's own voice


def _fitted(text: str, stream: TextIO) -> str:
    if not stream.isatty():
        return text
    width = _width_of(stream)
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    kept = _COMMAND.sub(lambda found: found[0].replace(" ", _NO_BREAK), line)
    lines = textwrap.wrap(
        kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(_NO_BREAK, " ")


def _width_of(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):
        return _USUAL


def out(text: str) -> None:
    """Prints one line of result on stdout."""
    print(text, flush=True)  # noqa: T201 - as above


def out_sentence(text: str) -> None:
    """Prints one line of result for people on stdout, wrapped as by `say`."""
    out(_fitted(text, sys.stdout))


def out_json(*values: Any) -> None:
    """Prints each document on one line, so that several of them are JSON lines."""
    for value in values:
        out(json.dumps(value))


def out_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "") -> None:
    """Prints a table. On a terminal that is too narrow, the last column takes several lines.

    Args:
        empty: said instead if there are no rows.
    """
    cells = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    if len(cells) == 1 and empty:
        say(empty)
        return
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    for *first, last in cells:
        begin = "".join(f"{cell.ljust(width)}  " for cell, width in zip(first, widths, strict=False))
        for number, part in enumerate(_lines(last, indent)):
            out(f"{' ' * indent if number else begin}{part}".rstrip())


def out_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Prints names and values, one pair on a line; pairs without a value are left out.

    On a terminal, a long value takes several lines.
    """
    shown = [(name, clean(value)) for name, value in fields if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        for number, part in enumerate(_lines(value, width + 2)):
            out(f"{('' if number else name).ljust(width)}  {part}")


def terminal_width() -> int:
    """In columns; 80 where there is no terminal."""
    return shutil.get_terminal_size().columns


def _lines(text: str, indent: int) -> list[str]:
    """The text as it fits behind `indent` columns of a terminal; whole in a pipe."""
    width = terminal_width() - indent
    if len(text) <= width or width < _NARROWEST or not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, width, break_on_hyphens=False)


def local_time(stamp: int | None) -> str:
    """A Unix time in the local time zone; empty for None."""
    return datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp else ""
