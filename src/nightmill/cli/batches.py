"""`list` and `show`: the batches of any OpenAI-compatible batch server.

Progress belongs to `watch`, the changes of a batch to `steering`, its lines to `results`.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli.connection import BaseUrl, BatchId, base_url_flag, full_batch_id, server
from nightmill.cli.outcome import counts_of, failures_of, next_steps, tell_errors
from nightmill.cli.screen import Json, local_time, out, out_fields, out_json, say, terminal_width
from nightmill.cli.table import Column, out_fitted
from nightmill.core.words import cut, duration, moment, short_id
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client import Batch, Client
    from nightmill.client.insight import Forecast, Why

_PAGE = 100
_LONGEST_MODEL = 20
_LEAST_MODEL = 12
_LEAST_WHY = 20
_STATUSES = (
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One batch of the list. `why` and `limit` say what limits it, as a sentence and as its code in words."""

    id: str
    status: str
    total: int
    ok: int
    failed: int
    created_at: int
    endpoint: str
    model: str
    why: str = ""
    limit: str = ""

    @property
    def done(self) -> str:
        return f"{self.ok + self.failed}/{self.total}" if self.total else "-"


def list_batches(
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many, newest first.")] = 20,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Those behind this one.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", help="Only those with this status; repeatable."),
    ] = None,
    wide: Annotated[
        bool,
        typer.Option("--wide", "-w", help="Whole ids, times and sentences, as far as a terminal has room."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print whole ids only, one on a line.")
    ] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""
    wanted = _statuses(status or ())
    with server(base_url) as client:
        if after is not None:
            after = full_batch_id(client, after)
        if as_json:
            batches = _published(client, limit, after, wanted)
            out_json(*(batch.to_dict(mode="json") for batch in batches))
            return
        rows = _own_rows(client, limit, after, wanted)
        if rows is None:
            rows = [_row_of(batch) for batch in _published(client, limit, after, wanted)]
    if quiet:
        for row in rows:
            out(row.id)
    elif not rows:
        say(
            "no batch is like that"
            if wanted or after
            else "no batches yet; make one with: nightmill submit FILE"
        )
    elif wide:
        out_fitted(_wide(rows), terminal_width() if sys.stdout.isatty() else None)
    else:
        out_fitted(_narrow(rows, now=time.time(), width=terminal_width()), terminal_width())


def _statuses(given: Sequence[str]) -> tuple[str, ...]:
    for status in given:
        if status not in _STATUSES:
            raise RequestError(f"there is no status '{status}'; the statuses are {', '.join(_STATUSES)}")
    return tuple(given)


def _narrow(rows: Sequence[_Row], *, now: float, width: int) -> list[Column]:
    """The columns that matter. What limits a batch is a sentence where it fits, else its code in words."""
    first = [
        Column("ID", [short_id(row.id) for row in rows]),
        Column("STATUS", [row.status for row in rows]),
        Column("DONE", [row.done for row in rows]),
        Column("FAILED", [str(row.failed) for row in rows]),
        Column("AGE", [duration(now - row.created_at) for row in rows]),
        Column("MODEL", [cut(row.model, _LONGEST_MODEL) for row in rows], drop=1),
    ]
    left = width - sum(column.width + 2 for column in first)
    limits = [row.why if len(row.why) <= max(left, _LEAST_WHY) else row.limit for row in rows]
    endpoints = Column("ENDPOINT", [row.endpoint for row in rows], drop=3)
    return [*first, endpoints, Column("WHY", limits, drop=2, least=max(map(len, limits)))]


def _wide(rows: Sequence[_Row]) -> list[Column]:
    return [
        Column("ID", [row.id for row in rows]),
        Column("STATUS", [row.status for row in rows]),
        Column("DONE", [row.done for row in rows]),
        Column("OK", [str(row.ok) for row in rows], drop=5),
        Column("FAILED", [str(row.failed) for row in rows]),
        Column("CREATED", [local_time(row.created_at) for row in rows], drop=2),
        Column("ENDPOINT", [row.endpoint for row in rows], drop=4),
        Column("MODEL", [row.model for row in rows], drop=1, least=_LEAST_MODEL),
        Column("WHY", [row.why for row in rows], drop=3, least=_LEAST_WHY),
    ]


def _own_rows(client: "Client", limit: int, after: str | None, statuses: Sequence[str]) -> list[_Row] | None:
    """The rows of a nightmill server, which also says what limits each batch; None if it is another."""
    from openai import APIStatusError

    from nightmill.client import BatchSelection

    selection, rows = BatchSelection(status=statuses or None), list[_Row]()
    while limit > 0:
        try:
            page = client.api.steering.list(selection, after=after, limit=min(limit, _PAGE))
        except APIStatusError:
            return None
        rows += map(_own_row, page["data"])
        if not page["has_more"]:
            break
        limit -= len(page["data"])
        after = page["last_id"]
    return rows


def _own_row(document: dict[str, Any]) -> _Row:
    counts, why = document["request_counts"], document["why"]
    return _Row(
        id=document["id"],
        status=document["status"],
        total=counts["total"],
        ok=counts["completed"],
        failed=counts["failed"],
        created_at=document["created_at"],
        endpoint=document["endpoint"],
        model=document["model"] or "",
        why=why["sentence"] if why else "",
        limit=why["code"].replace("_", " ") if why else "",
    )


def _row_of(batch: "Batch") -> _Row:
    counts = batch.request_counts
    return _Row(
        id=batch.id,
        status=batch.status,
        total=counts.total if counts else 0,
        ok=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        created_at=batch.created_at,
        endpoint=batch.endpoint,
        model=batch.model or "",
    )


def _published(client: "Client", limit: int, after: str | None, statuses: Sequence[str]) -> "Iterator[Batch]":
    while True:
        # A filter may leave out whole pages, so they are read in full.
        page = client.api.list_batches(after=after, limit=_PAGE if statuses else min(limit, _PAGE))
        for batch in page.data:
            if not statuses or batch.status in statuses:
                yield batch
                limit -= 1
                if not limit:
                    return
        if not page.has_more or not page.data:
            return
        after = page.data[-1].id


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
        failures = failures_of(client, batch)
        steps = next_steps(batch, base_url_flag(client), is_own=own is not None)
    now = time.time()
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
            ("lines", counts_of(batch)),
            ("failures", failures),
            *_own_fields(own or {}),
            ("endpoint", batch.endpoint),
            ("model", batch.model),
            ("tokens", f"{batch.usage.total_tokens:,}" if batch.usage and batch.usage.total_tokens else None),
            ("input file", batch.input_file_id),
            ("output file", batch.output_file_id),
            ("error file", batch.error_file_id),
            *((name.replace("_", " "), _time(getattr(batch, f"{name}_at"), now)) for name in stamps),
            ("expires", _time(batch.expires_at, now)),
            ("window", batch.completion_window),
            *((f"metadata {key}", value) for key, value in (batch.metadata or {}).items()),
        ]
    )
    tell_errors(batch)
    for step in steps:
        say(step)


def _time(stamp: int | None, now: float) -> str:
    """`2026-11-29 19:50:04 (3 min ago)`, or with `in 23 h`."""
    if stamp is None:
        return ""
    away = f"{duration(now - stamp)} ago" if stamp <= now else f"in {duration(stamp - now)}"
    return f"{local_time(stamp)} ({away})"


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
        again = f", {forecast.retrying:,} retrying" if forecast.retrying else ""
        in_flight = f"{forecast.in_flight:,} in flight{again}"
        yield "rate", f"{forecast.lines_per_s:,.2f} lines/s{of_tokens}; {in_flight}"
    if forecast.ends_at is not None:
        times = forecast.ends_at, forecast.earliest_at, forecast.latest_at
        about, earliest, latest = (moment(it, time.time()) if it else "?" for it in times)
        yield "ends about", f"{about}; between {earliest} and {latest} in 8 of 10 cases"
    if forecast.deadline_odds is not None:
        yield "in time", f"{forecast.deadline_odds:.0%} likely before it expires"
    if forecast.tokens_to_come is not None:
        yield "tokens to come", f"about {forecast.tokens_to_come:,}"
    if forecast.cost is not None:
        more = f", and about {forecast.cost_to_come:,.4f} to come" if forecast.cost_to_come else ""
        yield "cost so far", f"{forecast.cost:,.4f}{more}"
