"""`nightmill convert`: makes request lines of what people have."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import Json, out, out_json, say

if TYPE_CHECKING:
    from nightmill.client.request_rows import Row


def convert(
    input_path: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            callback=flags.input_path,
            help="CSV, TSV, JSON, JSON Lines or text; also gzip, bzip2, xz, UTF-16. '-' is stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where they go; '-' is stdout [IN.jsonl]."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Makes a prompt of each row, such as 'Good or bad? {review}'."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model of requests that name none.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="PATH", help="The endpoint [/v1/chat/completions]."),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="NAME", help="The column with the custom_id [request-1, request-2, ...]."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make request lines of a table, an array, request bodies or text.

    In --prompt {NAME} is the value of a column, {text} a line of text.
    """
    from nightmill.cli.streams import STDIN, readable, replacing
    from nightmill.client.answers import write_rows
    from nightmill.client.convert import requests_of, rows_of

    target = output or (STDIN if input_path == STDIN else _beside(input_path))
    with readable(input_path) as path, replacing(target) as unfinished:
        read = rows_of(path)
        rows = Counted(requests_of(read, endpoint=endpoint, model=model, prompt=prompt, id_column=id_column))
        endpoint = write_rows(rows, unfinished, endpoint=endpoint, model=model, prompt=prompt)
    if target == STDIN:
        return
    if as_json:
        out_json({"path": str(target), "requests": rows.count, "endpoint": endpoint})
        return
    out(str(target))
    lines = "request line" if rows.count == 1 else "request lines"
    say(f"{rows.count:,} {lines} for {endpoint}; check them with: nightmill validate {target}")


class Counted:
    """Rows, counted as they pass."""

    def __init__(self, rows: "Iterator[Row]") -> None:
        self.count = 0
        self._rows = rows

    def __iter__(self) -> "Iterator[Row]":
        for row in self._rows:
            self.count += 1
            yield row


def _beside(path: Path) -> Path:
    """`reviews.csv` -> `reviews.jsonl`, `in.jsonl.gz` -> `in.jsonl`, `in.jsonl` -> `in_requests.jsonl`."""
    plain = path.with_suffix("") if path.suffix in {".gz", ".bz2", ".xz"} else path
    target = plain.with_suffix(".jsonl")
    return target.with_name(f"{target.stem}_requests.jsonl") if target == path else target
