"""`list`, `show`, `watch`: the batches of any OpenAI-compatible batch server.

The changes of a batch belong to `steering`, its lines to `results`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli.connection import BaseUrl, BatchId, full_batch_id, server
from nightmill.cli.failures import end_code
from nightmill.cli.screen import Json, clean, local_time, out, out_fields, out_json, out_table, say

if TYPE_CHECKING:
    from nightmill.client import Batch, Client
    from nightmill.client.insight import Forecast, Why

_PAGE = 100
_LISTED = 20
ENDED = ("completed", "expired", "cancelled", "failed")


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
        limits = client.api.insight.sentences([batch.id for batch in found if batch.status not in ENDED])
        headings = ("ID", "STATUS", "ANSWERED", "FAILED", "CREATED", "ENDPOINT", "MODEL")
        rows = [_row(batch) for batch in found]
        if limits is not None:
            headings = (*headings, "WHY")
            rows = [(*row, limits.get(batch.id, "")) for row, batch in zip(rows, found, strict=True)]
        out_table(headings, rows)


def show(batch_id: BatchId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show one batch."""
    with server(base_url) as client:
        batch_id = full_batch_id(client, batch_id)
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
    tell_errors(batch)


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
        watched(client, full_batch_id(client, batch_id), as_json=as_json)


def watched(client: "Client", batch_id: str, *, as_json: bool) -> None:
    batch = client.wait(batch_id)
    counts = batch.request_counts
    if as_json:
        out_json(batch.to_dict(mode="json"))
    else:
        tell_errors(batch)
        out(f"{batch.id} is {batch.status}")
        if batch.output_file_id or batch.error_file_id:
            say(f"get its lines with: nightmill results {batch.id}")
    raise typer.Exit(end_code(batch.status, counts.failed if counts else 0))


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


def tell_errors(batch: "Batch") -> None:
    listed = (batch.errors.data if batch.errors else None) or []
    for error in listed[:_LISTED]:
        message = clean(error.message or error.code or "")
        say(f"line {error.line}: {message}" if error.line else message)
    if len(listed) > _LISTED:
        say(f"and {len(listed) - _LISTED} more; see them with: nightmill show {batch.id} --json")
