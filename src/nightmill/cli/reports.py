"""`nightmill usage` and `nightmill audit`: usage by project, model and day, and the audit log."""

import csv
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from nightmill.cli import flags, stored
from nightmill.cli.screen import Json, local_time, out_json, say, terminal_width
from nightmill.cli.table import Column, out_fitted
from nightmill.core.words import with_short_ids
from nightmill.errors import RequestError
from nightmill.ids import ProjectId

_Project = Annotated[str | None, typer.Option("--project", metavar="PROJECT", help="Of this project only.")]
_COUNTS = (
    "batches",
    "requests",
    "completed",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
)

_HEADINGS = {
    "project_id": "PROJECT",
    "completed": "OK",
    "input_tokens": "TOKENS IN",
    "cached_tokens": "CACHED",
    "output_tokens": "TOKENS OUT",
    "reasoning_tokens": "REASONING",
}
_LEAST = {"project_id": 12, "model": 18}
"""So many characters of a long cell remain on a narrow terminal."""
_MINOR = {"reasoning_tokens": 4, "cached_tokens": 3, "batches": 2, "completed": 1}
"""Columns that a narrow terminal leaves out, that with the highest number first."""


def usage(
    project: _Project = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Of this model only.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="YYYY-MM-DD, in UTC.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="The day itself counts.")] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="NAMES", help="A row for each project, model, day.")
    ] = "project,model",
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    as_json: Json = False,
) -> None:
    """Report the requests and tokens of ended batches, by project, model and day."""
    from nightmill.api.tenant_wire import day_of, groups_of, usage_on_wire

    groups = groups_of(by)
    rows = stored.with_store(
        folder,
        config,
        lambda store: store.usage.totals(
            groups,
            project_id=None if project is None else ProjectId(project),
            model=model,
            first_day=day_of(first, param="from"),
            last_day=day_of(last, param="to"),
        ),
    )
    documents = [usage_on_wire(row) for row in rows]
    if as_json:
        out_json(*documents)
        return
    names = [
        *(name for name in ("project_id", "model", "day") if name.removesuffix("_id") in groups),
        *_COUNTS,
    ]
    cells = [[str(row[name]) for name in names] for row in documents]
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([names, *cells])
        return
    if not cells:
        say("no batch has ended yet" if not (project or model or first or last) else "no batch is like that")
        return
    columns = [
        Column(
            _HEADINGS.get(name, name.upper()),
            [row[place] for row in cells],
            drop=_MINOR.get(name, 0),
            least=_LEAST.get(name, 0),
        )
        for place, name in enumerate(names)
    ]
    out_fitted(columns, terminal_width() if sys.stdout.isatty() else None)


def audit(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="2026-01-31, or 2026-01-31T22:00, local time."),
    ] = None,
    project: _Project = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 100,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Show the audit log, newest entry first."""
    from nightmill.api.tenant_wire import entry_on_wire

    project_id = None if project is None else ProjectId(project)
    page = stored.with_store(
        folder,
        config,
        lambda store: store.audit.list(project_id=project_id, since=_moment(since), limit=limit),
    )
    documents: list[dict[str, Any]] = [entry_on_wire(entry) for entry in page.items]
    if as_json:
        out_json(*documents)
        return
    if not documents:
        say("the audit log has no such entry")
        return
    is_terminal = sys.stdout.isatty()
    subjects = [str(entry["subject_id"]) for entry in documents]
    out_fitted(
        [
            Column("WHEN", [local_time(int(entry["at"])) for entry in documents]),
            Column("WHO", [f"{entry['actor']} {entry['hint'] or ''}".strip() for entry in documents]),
            Column("WHAT", [entry["action"] for entry in documents]),
            Column("ON", [with_short_ids(it) for it in subjects] if is_terminal else subjects),
            Column("PROJECT", [entry["project_id"] or "" for entry in documents], drop=2),
            Column("FROM", [entry["address"] or "" for entry in documents], drop=3),
            Column("MORE", [entry["detail"] or "" for entry in documents], drop=1),
        ],
        terminal_width() if is_terminal else None,
    )


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise RequestError(f"--since takes a day or a time like 2026-01-31T22:00, not '{text}'") from None
