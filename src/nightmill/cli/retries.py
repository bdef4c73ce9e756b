"""`nightmill retry`: a new batch of the failed lines of batches of a nightmill server."""

from typing import Annotated, Any

import typer

from nightmill.cli.batches import BaseUrl, server, watched
from nightmill.cli.screen import Json, clean, out, out_json, say

_LISTED = 10


def retry(
    batch_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Batches that have ended.")],
    code: Annotated[
        list[str] | None,
        typer.Option("--code", metavar="CODE", help="Only this error code or HTTP status; repeatable."),
    ] = None,
    expired: Annotated[bool, typer.Option("--expired", help="The lines that expired.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="The lines that were cancelled.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="The lines that failed; needed only beside the others.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the lines only.")] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Wait for its end as `watch` does.")] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Send the failed lines of batches again, as a new batch. Prints the new batch's id."""
    given = {"failed": failed, "expired": expired, "cancelled": cancelled}
    outcomes = [name for name, is_given in given.items() if is_given] or None
    with server(base_url) as client:
        answer = client.retries.retry(*batch_ids, outcomes=outcomes, codes=code or (), dry_run=dry_run)
        batch = answer["batch"]
        if batch is None:
            if as_json:
                out_json(answer)
            else:
                out(_counted(answer, is_dry=dry_run))
            return
        say(_counted(answer, is_dry=True))
        if watch_it:
            watched(client, batch["id"], as_json=as_json)
        if as_json:
            out_json(answer)
        else:
            out(batch["id"])
            say(f"see how it goes with: nightmill watch {batch['id']}")


def _counted(answer: dict[str, Any], *, is_dry: bool) -> str:
    """How many lines there are, and of which codes."""
    if not answer["lines"]:
        return "no line of these batches matches" + ("" if is_dry else "; nothing was done")
    listed = [f"{clean(code)} {count:,}" for code, count in list(answer["codes"].items())[:_LISTED]]
    more = len(answer["codes"]) - len(listed)
    codes = ", ".join(listed) + (f" and {more} more codes" if more > 0 else "")
    repeats = answer.get("duplicate_custom_ids")
    warning = (
        f"; {repeats:,} have the custom_id of another line: retry the batches one by one" if repeats else ""
    )
    lines = "1 line" if answer["lines"] == 1 else f"{answer['lines']:,} lines"
    return f"{lines}: {codes}{warning}"
