"""Reads all that the screen of one batch shows from the API, each part within a bound.

A part that the API refuses, because its file is deleted, is a sentence in place of the part.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from nightmill.core.batch import TERMINAL
from nightmill.core.words import with_short_ids
from nightmill.dashboard.calls import ApiCalls, ApiRefusalError, path_of
from nightmill.dashboard.formats import exact
from nightmill.dashboard.screens.batch_code import chosen_options, code_of
from nightmill.dashboard.screens.batch_graph import graph_of
from nightmill.dashboard.screens.batch_plots import attempt_s, plots_of
from nightmill.dashboard.visit import Visit

_SHOWN_EVENTS: Final = 15
_MOST_EVENTS: Final = 1_000
_MOST_ANSWERS: Final = 12
_MOST_COUNTED_LINES: Final = 50_000
"""The receipt of a batch with more lines is made when a person asks for it: it reads the whole error file."""

Document = dict[str, Any]


async def read_batch(visit: Visit, batch_id: str) -> Document:
    """The document of the screen."""
    own = await visit.api.get(path_of("nightmill", "v1", "batches", batch_id))
    api = visit.api_of(own["project"]) if own.get("project") else visit.api
    most_events = _MOST_EVENTS if visit.query("history") == "all" else _SHOWN_EVENTS
    published, samples, events, failures, spread, latest = await asyncio.gather(
        api.get(path_of("v1", "batches", batch_id)),
        _part(api, batch_id, "samples"),
        _part(api, batch_id, "events", {"order": "desc", "limit": most_events}),
        _part(api, batch_id, "failures"),
        _part(api, batch_id, "distributions"),
        _part(api, batch_id, "latest", {"limit": _MOST_ANSWERS}),
    )
    has_ended = published["status"] in TERMINAL
    files, receipt, canary = await asyncio.gather(
        _files(api, published), _receipt(visit, api, published, own), _canary(api, own)
    )
    present = _present(visit, published, own)
    hide = _without_content if not visit.shows_content else _as_it_is
    return {
        "id": batch_id,
        "batch": own,
        "has_ended": has_ended,
        "published": {name: published[name] for name in _PUBLISHED},
        "figures": _figures(visit, published, own, present),
        "graph": graph_of(published),
        "plots": plots_of(published, samples.get("data", ()), present),
        "attempt_s": attempt_s(samples.get("data", ())),
        "failures": hide(failures, "message"),
        "distributions": spread,
        "latest": hide(latest, "excerpt"),
        "events": events,
        "files": files,
        "receipt": receipt,
        "canary": canary,
        "options": chosen_options(own),
        "code": code_of(_base_url(visit), published, own),
        "base_url": _base_url(visit),
    }


_PUBLISHED: Final = (
    "status",
    "errors",
    "completion_window",
    "input_file_id",
    "output_file_id",
    "error_file_id",
)


async def _part(
    api: ApiCalls, batch_id: str, name: str, query: Mapping[str, str | int] | None = None
) -> Document:
    """A part of the screen; `{"refused": sentence}` if the API refuses it."""
    try:
        return await api.get(path_of("nightmill", "v1", "batches", batch_id, name), query)
    except ApiRefusalError as error:
        return {"refused": error.message}


async def _files(api: ApiCalls, published: Document) -> list[Document]:
    kinds = {"Input": "input_file_id", "Output": "output_file_id", "Errors": "error_file_id"}
    wanted = {kind: published[name] for kind, name in kinds.items() if published[name]}
    found = await asyncio.gather(*(_file(api, file_id) for file_id in wanted.values()))
    return [{"kind": kind, "id": wanted[kind], **file} for kind, file in zip(wanted, found, strict=True)]


async def _file(api: ApiCalls, file_id: str) -> Document:
    try:
        file = await api.get(path_of("v1", "files", file_id))
    except ApiRefusalError:
        return {"filename": None, "shown_name": None, "size_bytes": None, "expires_at": None}
    return {
        "filename": file["filename"],
        "shown_name": with_short_ids(file["filename"]),
        "size_bytes": file["bytes"],
        "expires_at": file.get("expires_at"),
    }


async def _receipt(visit: Visit, api: ApiCalls, published: Document, own: Document) -> Document | None:
    """None before the end, and for a large batch until a person asks for it."""
    if published["status"] not in TERMINAL or published["status"] == "failed":
        return None
    if own["request_counts"]["total"] > _MOST_COUNTED_LINES and visit.query("receipt") is None:
        return None
    return await _part(api, published["id"], "receipt")


async def _canary(api: ApiCalls, own: Document) -> Document | None:
    return await _part(api, own["id"], "canary") if own["options"]["canary"] else None


def _present(visit: Visit, published: Document, own: Document) -> Document:
    """The sums of the batch now, or at its end."""
    forecast: Document = own["forecast"] or {}
    usage = forecast.get("usage") or published["usage"]
    stopped_at = published["finalizing_at"] or published["cancelling_at"]
    counts = own["request_counts"]
    return {
        "at": stopped_at or visit.now,
        "completed": counts["completed"],
        "failed": counts["failed"],
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "in_flight": 0 if stopped_at else forecast.get("in_flight", 0),
    }


def _figures(visit: Visit, published: Document, own: Document, present: Document) -> Document:
    """The figures at the top; the times of what is to come only where they are known."""
    counts: Document = own["request_counts"]
    forecast: Document = own["forecast"] or {}
    started_at = published["in_progress_at"]
    worked_s = None if started_at is None else max(0.0, present["at"] - started_at)
    done = counts["completed"] + counts["failed"] - counts["invalid"]
    lines_per_s = forecast.get("lines_per_s")
    if not forecast and worked_s and done:
        lines_per_s = round(done / worked_s, 3)
    ends_at, deadline = forecast.get("ends_at"), own["deadline"]
    ended_at = max(published[f"{name}_at"] or 0 for name in ("completed", "failed", "expired", "cancelled"))
    return {
        **present,
        "total": counts["total"],
        "invalid": counts["invalid"],
        "done": counts["completed"] + counts["failed"],
        "share": (counts["completed"] + counts["failed"]) / counts["total"] if counts["total"] else 0.0,
        "retrying": forecast.get("retrying", 0),
        "sent_again": own.get("retries"),
        "lines_per_s": lines_per_s,
        "output_tokens_per_s": forecast.get("output_tokens_per_s"),
        "ends_at": ends_at,
        "latest_at": forecast.get("latest_at"),
        "latest_text": _near(forecast.get("latest_at"), visit.now),
        "deadline": deadline,
        "deadline_odds": forecast.get("deadline_odds"),
        "is_late": published["status"] == "expired"
        or (published["status"] not in TERMINAL and visit.now > deadline)
        or (ends_at is not None and ends_at > deadline),
        "ended_at": ended_at or None,
        "took_s": ended_at - published["created_at"] if ended_at else None,
        "worked_s": worked_s,
        "tokens_to_come": forecast.get("tokens_to_come"),
        "cost": forecast.get("cost"),
        "cost_to_come": forecast.get("cost_to_come"),
    }


def _near(unix_s: float | None, now: float) -> str | None:
    """The time in UTC, short: with seconds or with the day."""
    if unix_s is None:
        return None
    day, time, _ = exact(unix_s).split(" ")
    return time if exact(now).startswith(day) else f"{day[5:]} {time[:5]}"


def _base_url(visit: Visit) -> str:
    """As this server sees itself. A script puts the address that the browser uses in its place."""
    url = visit.request.url
    return f"{url.scheme}://{url.netloc}/v1"


def _as_it_is(part: Document, _: str) -> Document:
    return part


def _without_content(part: Document, name: str) -> Document:
    """Without prompts and answers: `name` is the field of a line that holds them."""
    if "data" not in part:
        return part
    rows = [
        {**row, "samples": [_without(sample, name) for sample in row["samples"]]}
        if "samples" in row
        else _without(row, name)
        for row in part["data"]
    ]
    return {**part, "data": rows}


def _without(row: Document, name: str) -> Document:
    return {**row, name: None}
