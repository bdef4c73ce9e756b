"""Usage, quotas and audit entries as JSON, the same over HTTP and on the command line.

Duty: what is asked for as text, and the shape of what is answered. Not its duty: who may ask (`tenants`).
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from nightmill.core.audit import AuditEntry
from nightmill.core.limits import Consumption, Limits, ProjectRules
from nightmill.core.usage import GROUPS, Group, UsageRow
from nightmill.errors import RequestError
from nightmill.store.tallies import tally_values

_EPOCH = date(1970, 1, 1)
_ECHO_LENGTH = 100


# --- what was asked -----------------------------------------------------------------------------------------


def groups_of(text: str) -> Sequence[Group]:
    """Raises RequestError for a name that is no group."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in GROUPS]:
        named = unknown[0][:_ECHO_LENGTH]
        message = f"Invalid value: '{named}'. Supported values are: 'project', 'model', and 'day'."
        raise RequestError(message, param="group_by", code="invalid_value")
    return [group for group in GROUPS if group in asked]


def day_of(text: str | None, *, param: str) -> int | None:
    """Days since 1970. Raises RequestError."""
    if text is None:
        return None
    try:
        return (date.fromisoformat(text) - _EPOCH).days
    except ValueError:
        message = f"Invalid '{param}': '{text[:_ECHO_LENGTH]}' is no day. Write it as YYYY-MM-DD."
        raise RequestError(message, param=param, code="invalid_value") from None


# --- what is answered ---------------------------------------------------------------------------------------


def usage_on_wire(row: UsageRow) -> dict[str, Any]:
    key = {
        "project_id": row.project_id,
        "model": row.model,
        "day": None if row.day is None else (_EPOCH + timedelta(days=row.day)).isoformat(),
    }
    counts = {"batches": row.batches, "requests": row.requests, **tally_values(row.tally)}
    return {name: value for name, value in key.items() if value is not None} | counts


def project_on_wire(
    project_id: str, rules: ProjectRules, limits: Limits, consumption: Consumption
) -> dict[str, Any]:
    """`limits` hold what is in force, 0 being no limit; `own` what was set for this project alone."""
    names = Limits.__dataclass_fields__
    used = consumption.open
    return {
        "project_id": project_id,
        "limits": {name: getattr(limits, name) for name in names},
        "own": {
            name: value
            for name in ProjectRules.__dataclass_fields__
            if (value := getattr(rules, name)) is not None
        },
        "used": {
            "open_batches": used.batches,
            "open_lines": used.lines,
            "open_bytes": used.bytes,
            "stored_bytes": consumption.stored_bytes,
            "enqueued_tokens": {model or "": tokens for model, tokens in consumption.enqueued_tokens.items()},
        },
    }


def entry_on_wire(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.sequence,
        "at": entry.at,
        "actor": entry.by.name,
        "hint": entry.by.hint,
        "action": entry.act,
        "project_id": entry.project_id,
        "subject_id": entry.subject_id,
        "address": entry.by.address,
        "request_id": entry.by.request_id,
        "detail": entry.detail,
    }
