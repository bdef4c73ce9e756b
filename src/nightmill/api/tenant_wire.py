"""Usage, quotas and audit entries as JSON, the same over HTTP and on the command line.

This module parses arguments and writes the JSON. `tenants` checks access.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from nightmill.core.audit import AuditEntry
from nightmill.core.limits import Consumption, Limits, ProjectRules
from nightmill.core.usage import USAGE_GROUPS, UsageGroup, UsageRow
from nightmill.errors import RequestError
from nightmill.store.tallies import tally_values

_EPOCH = date(1970, 1, 1)
_ECHO_LENGTH = 100


# --- arguments ----------------------------------------------------------------------------------------------


def groups_of(text: str) -> Sequence[UsageGroup]:
    """The groups in a comma-separated text. Raises RequestError for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in USAGE_GROUPS]:
        value = unknown[0][:_ECHO_LENGTH]
        message = f"Invalid value: '{value}'. Supported values are: 'project', 'model', and 'day'."
        raise RequestError(message, param="group_by", code="invalid_value")
    return [group for group in USAGE_GROUPS if group in names]


def day_of(text: str | None, *, param: str) -> int | None:
    """Days since 1970. Raises RequestError."""
    if text is None:
        return None
    try:
        return (date.fromisoformat(text) - _EPOCH).days
    except ValueError:
        message = f"Invalid '{param}': '{text[:_ECHO_LENGTH]}' is no day. Write it as YYYY-MM-DD."
        raise RequestError(message, param=param, code="invalid_value") from None


# --- JSON ---------------------------------------------------------------------------------------------------


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
    """`limits` are the limits in force, 0 for no limit; `own` are the values set for this project."""
    names = Limits.__dataclass_fields__
    used = consumption.open
    return {
        "project_id": project_id,
        "limits": {name: getattr(limits, name) for name in names},
        "own": rules_on_wire(rules),
        "used": {
            "open_batches": used.batches,
            "open_lines": used.lines,
            "open_bytes": used.bytes,
            "stored_bytes": consumption.stored_bytes,
            "enqueued_tokens": {model or "": tokens for model, tokens in consumption.enqueued_tokens.items()},
        },
    }


def rules_on_wire(rules: ProjectRules) -> dict[str, int]:
    """The values that are set for the project itself."""
    names = ProjectRules.__dataclass_fields__
    return {name: value for name in names if (value := getattr(rules, name)) is not None}


def entry_on_wire(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.sequence,
        "at": entry.at,
        "actor": entry.by.name,
        "hint": entry.by.hint,
        "action": entry.action,
        "project_id": entry.project_id,
        "subject_id": entry.subject_id,
        "address": entry.by.address,
        "request_id": entry.by.request_id,
        "detail": entry.detail,
    }
