"""A batch as a row of the list: what the own document of the API says, put together for people. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nightmill.dashboard.list_address import OPEN_STATUSES

_UNSURE_ODDS: Final = 0.9
_ENDS: Final = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def row_of(batch: Mapping[str, Any], *, shows_project: bool = False) -> dict[str, Any]:
    """The row of a batch.

    Args:
        batch: a document of `GET /nightmill/v1/batches`.
        shows_project: whether the list has batches of several projects.
    """
    is_open = batch["status"] in OPEN_STATUSES
    expected: Mapping[str, Any] = batch.get("forecast") or {}
    usage: Mapping[str, Any] = batch.get("usage") or expected.get("usage") or {}
    counts = _counts(batch, expected)
    pairs: Mapping[str, str] = batch.get("metadata") or {}
    about = [batch.get("model"), *(f"{key}={value}" for key, value in pairs.items()), batch["endpoint"]]
    if shows_project:
        about.insert(0, batch.get("project"))
    limit: Mapping[str, Any] = batch.get("why") or {}
    return {
        "id": batch["id"],
        "status": batch["status"],
        "is_open": is_open,
        "is_paused": batch.get("paused_at") is not None and is_open,
        "file_name": batch.get("file_name"),
        "project": batch.get("project"),
        "endpoint": batch["endpoint"],
        "model": batch.get("model"),
        "priority": batch.get("priority", 0),
        "metadata": pairs,
        "about": [text for text in about if text],
        "counts": counts,
        "retries": batch.get("retries"),
        "lines_per_s": expected.get("lines_per_s"),
        "output_tokens_per_s": expected.get("output_tokens_per_s"),
        "created_at": batch["created_at"],
        "ends_at": expected.get("ends_at"),
        "latest_at": expected.get("latest_at"),
        "deadline": batch["deadline"],
        "late": lateness(expected, batch["deadline"]) if is_open else None,
        "ended_at": None if is_open else _ended_at(batch),
        "why": limit.get("sentence"),
        "reason": None if batch.get("stop_reason") is None else batch["stop_reason"]["message"],
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "cost": batch.get("cost"),
        "cost_to_come": expected.get("cost_to_come"),
    }


def lateness(expected: Mapping[str, Any], deadline: float) -> dict[str, Any] | None:
    """Whether the forecast misses the deadline: by how many seconds it is expected to (`by_s`, None where it
    may only be missed), and with which odds the batch is in time."""
    ends_at, odds = expected.get("ends_at"), expected.get("deadline_odds")
    if ends_at is not None and ends_at > deadline:
        return {"by_s": round(ends_at - deadline), "odds": odds}
    if odds is not None and odds < _UNSURE_ODDS:
        return {"by_s": None, "odds": odds}
    return None


def summary_of(rows: Sequence[Mapping[str, Any]], *, unfinished: int | None) -> dict[str, Any]:
    """What the unfinished batches of these rows do together.

    Args:
        unfinished: how many match the filter, on other pages too; None if only these rows are counted.
    """
    open_rows = [row for row in rows if row["is_open"]]
    rates = [row["lines_per_s"] for row in open_rows if row["lines_per_s"] is not None]
    ends = [row["ends_at"] for row in open_rows if row["ends_at"] is not None]
    return {
        "unfinished": len(open_rows) if unfinished is None else unfinished,
        "of_rows": len(open_rows),
        "paused": sum(row["is_paused"] for row in open_rows),
        "late": sum(row["late"] is not None for row in open_rows),
        "lines_per_s": sum(rates) if rates else None,
        "in_flight": sum(row["counts"]["in_flight"] for row in open_rows),
        "left": sum(row["counts"]["total"] - row["counts"]["done"] for row in open_rows),
        "last_ends_at": max(ends, default=None),
        "percent_done": _percent_done(open_rows),
    }


def _percent_done(rows: Sequence[Mapping[str, Any]]) -> int | None:
    total = sum(row["counts"]["total"] for row in rows)
    return 100 * sum(row["counts"]["done"] for row in rows) // total if total else None


def _counts(batch: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, int]:
    """The counts, of which `ok`, `failed`, `in_flight` and `waiting` sum up to `total`.

    The number in flight is measured at another moment than the others.
    """
    given = batch["request_counts"]
    total, ok, failed = int(given["total"]), int(given["completed"]), int(given["failed"])
    found = expected.get("in_flight", batch.get("in_flight")) or 0
    in_flight = max(0, min(int(found), total - ok - failed))
    return {
        "total": total,
        "done": ok + failed,
        "ok": ok,
        "failed": failed,
        "in_flight": in_flight,
        "waiting": max(0, total - ok - failed - in_flight),
        "invalid": int(given.get("invalid") or 0),
    }


def _ended_at(batch: Mapping[str, Any]) -> float | None:
    return next((batch[name] for name in _ENDS if batch.get(name) is not None), None)
