"""`nightmill retry`, `receipt`, `line` and `attempts`: failed lines as a new batch, and what is known of one.

Only nightmill servers have them.
"""

from typing import Annotated, Any

import typer

from nightmill.cli.connection import BaseUrl, BatchId, base_url_flag, full_batch_id, full_batch_ids, server
from nightmill.cli.screen import Json, clean, local_time, out, out_fields, out_json, say
from nightmill.cli.watch import watched
from nightmill.core.words import short_id
from nightmill.errors import RequestError

_LISTED = 10


def retry(
    batch_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="ID...", help="Batches that have ended: ids, beginnings of them, or 'latest'."
        ),
    ],
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
        answer = client.retries.retry(
            *full_batch_ids(client, batch_ids), outcomes=outcomes, codes=code or (), dry_run=dry_run
        )
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
            say(f"see how it goes with: nightmill watch {short_id(batch['id'])}{base_url_flag(client)}")


def receipt(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show what a batch that has ended took: lines, tokens, time and cost."""
    with server(base_url) as client:
        found = client.retries.receipt(full_batch_id(client, batch_id))
    if as_json:
        out_json(found)
        return
    counted = {"ok" if name == "answered" else name: count for name, count in found["lines"].items()}
    usage, seconds, cost = found["usage"], found["seconds"], found["cost"]
    stop, sent = found["stop_reason"], found["attempts"]
    upstreams: dict[str, int] = found["upstreams"] or {}
    errors: dict[str, int] = found["errors"] or {}
    tokens_in = f"{usage['input_tokens']:,} in ({usage['cached_tokens']:,} cached)"
    out_fields(
        [
            ("batch", found["id"]),
            ("status", found["status"]),
            ("stopped", None if stop is None else f"{stop['code']}: {stop['message']}"),
            ("lines", ", ".join(f"{count:,} {name}" for name, count in counted.items() if count is not None)),
            ("errors", ", ".join(f"{count:,}x {clean(code)}" for code, count in errors.items())),
            ("tokens", f"{tokens_in}, {usage['output_tokens']:,} out"),
            ("attempts", None if sent is None else f"{sent['sent']:,} sent, {sent['retried']:,} again"),
            ("upstreams", ", ".join(f"{clean(name)} {count:,}" for name, count in upstreams.items())),
            ("time", ", ".join(f"{name} {took:,} s" for name, took in seconds.items() if took is not None)),
            ("cost", None if cost is None else f"{cost:,.4f}"),
            ("deadline", f"{local_time(found['deadline'])}{_DEADLINE[found['deadline_met']]}"),
            ("repeats", ", ".join(origin["id"] for origin in found["origins"])),
            ("retried by", ", ".join(found["retries"])),
        ]
    )


def line(
    batch_id: BatchId,
    custom_id: Annotated[
        str | None, typer.Option("--custom-id", metavar="ID", help="The custom_id of the line.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--line", metavar="N", min=1, help="The line of the input file, from 1.")
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show where one line of a batch is: waiting, in flight, to be sent again, or answered."""
    if (custom_id is None) == (number is None):
        raise RequestError("name the line by one of --custom-id and --line")
    with server(base_url) as client:
        found = client.retries.line(full_batch_id(client, batch_id), custom_id=custom_id, number=number)
    if as_json:
        out_json(found)
        return
    since, again_at = found["since"], found["again_at"]
    out_fields(
        [
            ("line", str(found["line"])),
            ("custom_id", found["custom_id"]),
            ("state", found["state"].replace("_", " ")),
            ("upstream", found["upstream"]),
            ("since", None if since is None else local_time(int(since))),
            ("again at", None if again_at is None else local_time(int(again_at))),
            ("reason", found["reason"]),
            ("code", found["code"]),
            ("file", found["file_id"]),
        ]
    )


def attempts(batch_id: BatchId, base_url: BaseUrl = None) -> None:
    """Print the recorded attempts of a batch that was created with record_attempts, as lines of JSON."""
    with server(base_url) as client:
        for text in client.retries.attempts(full_batch_id(client, batch_id)):
            out(text.decode())


_DEADLINE = {True: ", met", False: ", not met", None: ""}


def _counted(answer: dict[str, Any], *, is_dry: bool) -> str:
    """How many lines there are, and of which codes."""
    if not answer["lines"]:
        return "no line of these batches matches" + ("" if is_dry else "; nothing was done")
    listed = [f"{count:,}x {clean(code)}" for code, count in list(answer["codes"].items())[:_LISTED]]
    more = len(answer["codes"]) - len(listed)
    codes = ", ".join(listed) + (f" and {more} more codes" if more > 0 else "")
    repeats = answer.get("duplicate_custom_ids")
    warning = (
        f"; {repeats:,} have the custom_id of another line: retry the batches one by one" if repeats else ""
    )
    lines = "1 line" if answer["lines"] == 1 else f"{answer['lines']:,} lines"
    return f"{lines}: {codes}{warning}"
