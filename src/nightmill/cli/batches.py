"""`submit`, `list`, `show`, `watch`, `results`: a client of any OpenAI-compatible batch server.

What only nightmill has, and `cancel`, belongs to `steering`.
"""

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli import batch_options as flag
from nightmill.cli import flags
from nightmill.cli.failures import end_code
from nightmill.cli.screen import Json, clean, local_time, out, out_fields, out_json, out_table, say
from nightmill.errors import RequestError, UnavailableError

if TYPE_CHECKING:
    from nightmill.client import Batch, Client
    from nightmill.client.insight import Forecast, Why

BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", metavar="URL", help="The server [OPENAI_BASE_URL, else http://127.0.0.1:8080/v1]."
    ),
]
BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]

PRIORITY_HELP = "From -10 to 10: with each step twice the share among the project's batches"
_PAGE = 100
_LISTED = 20
_ENDED = ("completed", "expired", "cancelled", "failed")
STDOUT = Path("-")


@contextmanager
def server(base_url: str | None) -> "Generator[Client]":
    # Imported here: the openai package takes most of a second to import.
    from nightmill.client import Client

    with Client(base_url) as client:
        yield client


def submit(
    path: flags.Input,
    endpoint: flags.Endpoint = None,
    window: Annotated[
        str,
        typer.Option("--window", metavar="WINDOW", help="How long the batch may take.", show_default=True),
    ] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Kept with the batch; repeatable."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", metavar="N", min=-10, max=10, help=f"{PRIORITY_HELP} [0]."),
    ] = None,
    on_invalid: flag.OnInvalid = None,
    canary: flag.Canary = None,
    canary_max_failed: flag.CanaryMaxFailed = None,
    max_failures: flag.MaxFailures = None,
    max_output_tokens: flag.MaxOutputTokens = None,
    max_cost: flag.MaxCost = None,
    record_attempts: flag.RecordAttempts = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Wait for its end as `watch` does.")] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a file and create its batch. Prints the batch's id."""
    options = flag.batch_options(
        on_invalid=on_invalid,
        canary=canary,
        canary_max_failed=canary_max_failed,
        max_failures=max_failures,
        max_output_tokens=max_output_tokens,
        max_cost=max_cost,
        record_attempts=record_attempts,
    )
    pairs = pairs_of(metadata or [])
    with server(base_url) as client:
        from nightmill.client.answers import endpoint_of

        endpoint = endpoint or endpoint_of(path)
        batch = client.submit_file(
            path,
            endpoint=endpoint,
            completion_window=window,
            metadata=pairs,
            priority=priority,
            options=options,
        )
        if watch_it:
            say(f"{batch.id} is {batch.status}")
            watched(client, batch.id, as_json=as_json)
        if as_json:
            out_json(batch.to_dict(mode="json"))
        else:
            out(batch.id)
            say(f"see how it goes with: nightmill watch {batch.id}")


def list_batches(
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many, newest first.")] = 20,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Those behind this one.")] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""
    with server(base_url) as client:
        batches = _listed(client, limit, after)
        if as_json:
            out_json(*(batch.to_dict(mode="json") for batch in batches))
            return
        found = list(batches)
        limits = client.api.insight.sentences([batch.id for batch in found if batch.status not in _ENDED])
        headings = ("ID", "STATUS", "ANSWERED", "FAILED", "CREATED", "ENDPOINT", "MODEL")
        rows = [_row(batch) for batch in found]
        if limits is not None:
            headings = (*headings, "WHY")
            rows = [(*row, limits.get(batch.id, "")) for row, batch in zip(rows, found, strict=True)]
        out_table(headings, rows)


def show(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show one batch."""
    with server(base_url) as client:
        batch = client.api.retrieve_batch(batch_id)
        own = client.api.insight.document_if_known(batch_id)
    if as_json:
        insight = {name: own[name] for name in ("why", "forecast") if own.get(name)} if own else {}
        out_json(batch.to_dict(mode="json") | ({"nightmill": insight} if insight else {}))
        return
    counts = batch.request_counts
    stamps = (
        "created",
        "in_progress",
        "finalizing",
        "completed",
        "failed",
        "expired",
        "cancelling",
        "cancelled",
    )
    out_fields(
        [
            ("id", batch.id),
            ("status", batch.status),
            *_own_fields(own or {}),
            ("endpoint", batch.endpoint),
            ("model", batch.model),
            ("answered", f"{counts.completed} of {counts.total}, {counts.failed} failed" if counts else None),
            ("tokens", f"{batch.usage.total_tokens:,}" if batch.usage else None),
            ("input file", batch.input_file_id),
            ("output file", batch.output_file_id),
            ("error file", batch.error_file_id),
            *((name.replace("_", " "), local_time(getattr(batch, f"{name}_at"))) for name in stamps),
            ("expires", local_time(batch.expires_at)),
            ("window", batch.completion_window),
            *((f"metadata {key}", value) for key, value in (batch.metadata or {}).items()),
        ]
    )
    _tell_errors(batch)


def _own_fields(own: dict[str, Any]) -> "Iterator[tuple[str, str | None]]":
    """What only nightmill says of a batch, as names and values."""
    from nightmill.client.insight import forecast_in, why_in

    if reason := own.get("stop_reason"):
        yield "stopped", reason["message"]
    yield from insight_fields(why_in(own), forecast_in(own))
    yield "paused since", local_time(own.get("paused_at"))
    yield "priority", str(own["priority"]) if own.get("priority") else None
    yield "at most", f"{own['concurrency']:,} in flight" if own.get("concurrency") else None


def insight_fields(why: "Why | None", forecast: "Forecast | None") -> "Iterator[tuple[str, str | None]]":
    """What limits a batch and what is expected of it, as names and values."""
    if why is not None:
        yield "why", why.sentence
    if forecast is None:
        return
    if forecast.lines_per_s is not None:
        tokens = forecast.output_tokens_per_s
        of_tokens = f", {tokens:,.0f} output tokens/s" if tokens is not None else ""
        yield "rate", f"{forecast.lines_per_s:,.2f} lines/s{of_tokens}; {forecast.in_flight:,} in flight"
    if forecast.ends_at is not None:
        earliest, latest = local_time(forecast.earliest_at), local_time(forecast.latest_at)
        yield (
            "ends about",
            f"{local_time(forecast.ends_at)}; between {earliest} and {latest} in 8 of 10 cases",
        )
    if forecast.deadline_odds is not None:
        yield "in time", f"{forecast.deadline_odds:.0%} likely before it expires"
    if forecast.tokens_to_come is not None:
        yield "tokens to come", f"about {forecast.tokens_to_come:,}"
    if forecast.cost is not None:
        more = f", and about {forecast.cost_to_come:,.4f} to come" if forecast.cost_to_come else ""
        yield "cost so far", f"{forecast.cost:,.4f}{more}"


def watch(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show progress until the batch has ended. The exit code depends on its status."""
    with server(base_url) as client:
        watched(client, batch_id, as_json=as_json)


def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the output lines go; '-' is stdout [-]."),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option("--errors", "-e", metavar="FILE", help="Where the error lines go; '-' is stdout."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="One line for each request: with the answers of its retries.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print each line as it is answered, until the end.")
    ] = False,
    outcome: Annotated[
        str | None, typer.Option("--outcome", metavar="completed|failed", help="Only lines of this outcome.")
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option("--code", metavar="CODE", help="Only lines with this error code or status; repeatable."),
    ] = None,
    custom_id: Annotated[
        list[str] | None, typer.Option("--custom-id", metavar="ID", help="Only this line; repeatable.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="Only lines behind this one.")
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Download the lines of a batch that has ended, or print those of a running one.

    With --follow or one of the filters, lines of both outcomes go to stdout; only nightmill has that.
    """
    if merged:
        if errors is not None or as_json:
            raise RequestError("--merged writes all lines to one place; name a file with -o only")
        save_merged(batch_id, output or STDOUT, base_url)
        return
    if follow or outcome or code or custom_id or after:
        if output is not None or errors is not None:
            raise RequestError("--follow and filters print on stdout; leave -o and -e out")
        _print_wanted(
            batch_id,
            base_url,
            is_followed=follow,
            outcome=outcome,
            codes=code or (),
            custom_ids=custom_id or (),
            after=after,
            as_json=as_json,
        )
        return
    if output is None and errors is None:
        output = STDOUT
    if as_json and STDOUT in (output, errors):
        raise RequestError("--json and lines can't both go to stdout; name files with -o and -e")
    with server(base_url) as client:
        batch = client.api.retrieve_batch(batch_id)
        if batch.status not in _ENDED:
            raise UnavailableError(f"{batch.id} is {batch.status}; wait with: nightmill watch {batch.id}")
        if batch.status == "failed":
            _tell_errors(batch)
            raise RequestError(
                f"{batch.id} failed validation and has no lines; correct them and submit again"
            )
        document = {
            "batch_id": batch.id,
            "output": _downloaded(client, batch.output_file_id, output, "output"),
            "errors": _downloaded(client, batch.error_file_id, errors, "error"),
        }
    if as_json:
        out_json(document)
    elif batch.error_file_id and errors is None:
        say(f"some lines were not answered; get them with: nightmill results {batch.id} -e FILE")


def save_merged(batch_id: str, path: Path, base_url: str | None) -> None:
    """Writes the merged result of a batch and its retries to `path`, or to stdout for `STDOUT`."""
    with server(base_url) as client:
        lines = client.retries.merged(batch_id)
        if path == STDOUT:
            for line in lines:
                sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            return
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as stream:
            stream.writelines(line + b"\n" for line in lines)
        partial.replace(path)
    say(f"wrote {path} ({path.stat().st_size:,} bytes)")


def _print_wanted(
    batch_id: str, base_url: str | None, *, is_followed: bool, as_json: bool, **wanted: Any
) -> None:
    from nightmill.cli.followed import print_followed, print_so_far

    if wanted["outcome"] not in (None, "completed", "failed"):
        raise RequestError(f"--outcome is completed or failed, not '{clean(wanted['outcome'])}'")
    with server(base_url) as client:
        from nightmill.client import WantedResults

        show = print_followed if is_followed else print_so_far
        show(client, batch_id, WantedResults(**wanted), as_json=as_json)


def watched(client: "Client", batch_id: str, *, as_json: bool) -> None:
    batch = client.wait(batch_id)
    counts = batch.request_counts
    if as_json:
        out_json(batch.to_dict(mode="json"))
    else:
        _tell_errors(batch)
        out(f"{batch.id} is {batch.status}")
        if batch.output_file_id or batch.error_file_id:
            say(f"get its lines with: nightmill results {batch.id}")
    raise typer.Exit(end_code(batch.status, counts.failed if counts else 0))


def _downloaded(client: "Client", file_id: str | None, path: Path | None, kind: str) -> dict[str, Any] | None:
    if path is None:
        return None
    if file_id is None:
        say(f"there are no {kind} lines")
        return None
    return {"file_id": file_id, "path": str(path), "bytes": download_to(path, client, file_id)}


def download_to(path: Path, client: "Client", file_id: str) -> int:
    """Writes a file to `path`, or to stdout for `STDOUT`; returns its size in bytes."""
    if path == STDOUT:
        from nightmill.client.download import copy

        return copy(client.openai, file_id, sys.stdout.buffer)
    size_bytes = client.save(file_id, path)
    say(f"wrote {path} ({size_bytes:,} bytes)")
    return size_bytes


def _listed(client: "Client", limit: int, after: str | None) -> "Iterator[Batch]":
    while limit > 0:
        page = client.api.list_batches(after=after, limit=min(limit, _PAGE))
        yield from page.data[:limit]
        if not page.has_more or not page.data:
            return
        limit -= len(page.data)
        after = page.data[-1].id


def _row(batch: "Batch") -> tuple[str, ...]:
    counts = batch.request_counts
    answered = f"{counts.completed + counts.failed}/{counts.total}" if counts else ""
    failed = str(counts.failed) if counts else ""
    created = local_time(batch.created_at)
    return batch.id, batch.status, answered, failed, created, batch.endpoint, batch.model or ""


def _tell_errors(batch: "Batch") -> None:
    listed = (batch.errors.data if batch.errors else None) or []
    for error in listed[:_LISTED]:
        message = clean(error.message or error.code or "")
        say(f"line {error.line}: {message}" if error.line else message)
    if len(listed) > _LISTED:
        say(f"and {len(listed) - _LISTED} more; see them with: nightmill show {batch.id} --json")


def pairs_of(given: list[str]) -> dict[str, str] | None:
    """The metadata of `KEY=VALUE`s; None without any."""
    pairs: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(f"--metadata wants KEY=VALUE and got '{clean(pair)}'")
        pairs[key] = value
    return pairs or None
