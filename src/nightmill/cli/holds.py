"""`nightmill hold`: legal holds on projects, files and batches."""

from typing import Annotated

import typer

from nightmill.cli import flags, stored
from nightmill.cli.help import CommandLine
from nightmill.cli.screen import Json, local_time, out, out_json, out_table
from nightmill.core.legal_hold import HoldKind
from nightmill.errors import NotFoundError

app = CommandLine("Keep projects, files and batches from being deleted.")

_Kind = Annotated[HoldKind, typer.Argument(metavar="KIND", help="project, file or batch.")]
_SubjectId = Annotated[str, typer.Argument(metavar="ID", help="Which one.")]


@app.command("set")
def set_hold(
    kind: _Kind,
    subject_id: _SubjectId,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="For the list.")] = None,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Set a legal hold: neither a client nor expiry deletes the object. Setting it twice does no harm."""
    stored.with_store(
        folder,
        config,
        lambda store: store.holds.set(kind, subject_id, reason=reason, by=stored.operator()),
    )
    if as_json:
        out_json({"kind": kind.value, "id": subject_id, "held": True})
    else:
        out(f"{kind} {subject_id} is held")


@app.command("clear")
def clear_hold(
    kind: _Kind,
    subject_id: _SubjectId,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Clear a legal hold. What has expired meanwhile is deleted at the next sweep of the server."""
    if not stored.with_store(
        folder, config, lambda store: store.holds.clear(kind, subject_id, by=stored.operator())
    ):
        raise NotFoundError(f"{kind} {subject_id} is not held; see what is with: nightmill hold list")
    if as_json:
        out_json({"kind": kind.value, "id": subject_id, "held": False})
    else:
        out(f"{kind} {subject_id} is no longer held")


@app.command("list")
def list_holds(folder: flags.Folder = None, config: flags.Config = None, as_json: Json = False) -> None:
    """List the legal holds and when they were set."""
    holds = stored.with_store(folder, config, lambda store: store.holds.list())
    if as_json:
        out_json(
            *(
                {
                    "kind": hold.kind.value,
                    "id": hold.subject_id,
                    "reason": hold.reason,
                    "created_at": hold.created_at,
                }
                for hold in holds
            )
        )
        return
    out_table(
        ("KIND", "ID", "SINCE", "REASON"),
        (
            (hold.kind.value, hold.subject_id, local_time(hold.created_at), hold.reason or "")
            for hold in holds
        ),
        empty="there are no legal holds",
    )
