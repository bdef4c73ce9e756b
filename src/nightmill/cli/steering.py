"""`pause`, `resume`, `prioritize`, `deadline`, `limit`, `cancel`: steer the batches of a server.

Each takes ids, or a filter that chooses batches; only nightmill servers have these, except the cancellation
of one batch. With a filter the number of batches is shown first, and nothing happens before it is confirmed.
"""

import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nightmill.cli.connection import BaseUrl, full_batch_id, full_batch_ids, server
from nightmill.cli.screen import Json, local_time, out, out_json, out_sentence, say
from nightmill.cli.submit import PRIORITY_HELP, pairs_of
from nightmill.core.words import short_id
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client.steering import Action, Selected

_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"\+?([0-9]+(?:\.[0-9]+)?)([smhd])")
_SHOWN: Final = 20

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID...]", help="The batches' ids, the beginnings of them, or 'latest'."),
]
Status = Annotated[
    list[str] | None,
    typer.Option("--status", metavar="STATUS", help="All batches with this status; repeatable."),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="All batches with this metadata; repeatable."),
]
OlderThan = Annotated[
    str | None,
    typer.Option("--older-than", metavar="DURATION", help="All batches created so long ago, such as 2h."),
]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="PATH", help="All batches of this endpoint.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="All batches of this model.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would happen.")]


def pause(
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Send no further line of batches until they are resumed. Lines in flight are answered."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    _act("pause", selected, {}, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def resume(
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Go on with paused batches."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    _act("resume", selected, {}, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def prioritize(
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", min=-10, max=10, help=f"{PRIORITY_HELP}.")
    ],
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Change the priority of batches."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    values = {"priority": priority}
    _act("prioritize", selected, values, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def deadline(
    until: Annotated[
        str,
        typer.Option(
            "--until", metavar="WHEN", help="From now, such as +6h, or a local time such as 2027-01-31T18:00."
        ),
    ],
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Move the deadline of batches, later or earlier."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    values = {"deadline": _moment(until)}
    _act("deadline", selected, values, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def limit(
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency", metavar="N|none", help="Most lines in flight of each batch; none for no limit."
        ),
    ],
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Limit the lines in flight of batches, over all workers."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    if concurrency != "none" and not (concurrency.isdecimal() and int(concurrency)):
        raise RequestError(f"--concurrency wants a number from 1 or 'none' and got '{concurrency}'")
    values = {"concurrency": None if concurrency == "none" else int(concurrency)}
    _act("limit", selected, values, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def cancel(
    batch_ids: Ids = None,
    status: Status = None,
    metadata: Metadata = None,
    older_than: OlderThan = None,
    endpoint: Endpoint = None,
    model: Model = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Cancel batches. Lines that are done are kept."""
    selected = _selected(batch_ids, status, metadata, older_than, endpoint, model)
    if isinstance(selected, list) and len(selected) == 1 and not dry_run:
        _cancel_one(selected[0], base_url, as_json=as_json)
        return
    _act("cancel", selected, {}, yes=yes, dry_run=dry_run, base_url=base_url, as_json=as_json)


def _cancel_one(batch_id: str, base_url: str | None, *, as_json: bool) -> None:
    """By the published operation, which every server has."""
    with server(base_url) as client:
        batch = client.api.cancel_batch(full_batch_id(client, batch_id))
    if as_json:
        out_json(batch.to_dict(mode="json"))
    else:
        out(f"{short_id(batch.id)} is {batch.status}")


def _selected(
    batch_ids: list[str] | None,
    status: list[str] | None,
    metadata: list[str] | None,
    older_than: str | None,
    endpoint: str | None,
    model: str | None,
) -> "Selected":
    from nightmill.client.steering import BatchSelection

    has_filter = any((status, metadata, older_than, endpoint, model))
    if bool(batch_ids) == has_filter:
        raise RequestError(
            "name batches, or choose them by --status, --metadata, --older-than, --endpoint and --model"
            + (", not both" if has_filter else "")
        )
    if batch_ids:
        return batch_ids
    return BatchSelection(
        status=status,
        metadata=pairs_of(metadata or []),
        older_than_s=None if older_than is None else _seconds(older_than),
        endpoint=endpoint,
        model=model,
    )


def _act(
    action: "Action",
    selected: "Selected",
    values: dict[str, Any],
    *,
    yes: bool,
    dry_run: bool,
    base_url: str | None,
    as_json: bool,
) -> None:
    with server(base_url) as client:
        if isinstance(selected, list):
            selected = full_batch_ids(client, selected)
        if dry_run or (not isinstance(selected, list) and not yes):
            trial = client.api.steering.act(action, selected, dry_run=True, **values)
            if dry_run or not trial["changed"]:
                _show(trial, as_json=as_json)
                return
            _confirm(action, trial)
        done = client.api.steering.act(action, selected, **values)
    _show(done, as_json=as_json)


def _confirm(action: str, trial: dict[str, Any]) -> None:
    count = trial["changed"]
    what = f"{action} {count} {'batch' if count == 1 else 'batches'}"
    if not sys.stdin.isatty():
        raise RequestError(f"this would {what}; add --yes to do it, or --dry-run to list them")
    _list_rows(trial, most=_SHOWN)
    if not typer.confirm(f"{what}?", err=True):
        raise RequestError("nothing was changed")


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    failed = answer["refused"] + answer["not_found"]
    if as_json:
        out_json(*map(_document, answer["data"]))
    elif failed == len(answer["data"]) == 1:
        raise RequestError(answer["data"][0]["message"])
    elif answer["data"]:
        _list_rows(answer, most=len(answer["data"]))
        counts = (f"{answer[name]} {name.replace('_', ' ')}" for name in ("changed", "unchanged"))
        begin = "would be: " if answer["dry_run"] else ""
        say(begin + ", ".join((*counts, f"{failed} refused")))
    if not answer["data"]:
        say("no batch matches; nothing was changed")
    if failed:
        raise typer.Exit(2)


def _document(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the fields of its batch."""
    return {"id": row["id"], **(row["batch"] or {}), "result": row["result"], "message": row["message"]}


def _list_rows(answer: dict[str, Any], *, most: int) -> None:
    for row in answer["data"][:most]:
        if row["result"] in ("refused", "not_found"):
            say(f"{row['id']}: {row['message']}")
        else:
            out_sentence(_line(row["batch"], is_trial=answer["dry_run"]))
    if len(answer["data"]) > most:
        out(f"and {len(answer['data']) - most} more")


def _line(batch: dict[str, Any], *, is_trial: bool) -> str:
    """`3f2a9c1b is in_progress, paused, priority 0`."""
    words = [f"{short_id(batch['id'])} {'would be' if is_trial else 'is'} {batch['status']}"]
    if batch["paused_at"] is not None:
        words.append("paused")
    words.append(f"priority {batch['priority']}")
    words.append(f"deadline {local_time(batch['deadline'])}")
    if batch["concurrency"] is not None:
        words.append(f"concurrency {batch['concurrency']}")
    return ", ".join(words)


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise RequestError(f"a duration is a number and s, m, h or d, such as 2h, and not '{text}'")
    return float(found[1]) * _UNIT_S[found[2]]


def _moment(text: str) -> int:
    """Unix seconds of a time from now, or of a local time."""
    if _DURATION.fullmatch(text):
        return int(time.time() + _seconds(text))
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp())
    except ValueError:
        raise RequestError(
            f"--until wants a time from now such as +6h, or a local time such as 2027-01-31T18:00, and not"
            f" '{text}'"
        ) from None
