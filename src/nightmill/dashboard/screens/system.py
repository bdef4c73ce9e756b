"""The screens "System": versions, disk and retention, the settings with where each comes from, and the audit
log.
"""

from datetime import UTC, datetime
from typing import Any, Final, cast

from starlette.responses import Response

from nightmill.core.audit import AuditAction
from nightmill.dashboard.navigation import SYSTEM
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, action, screen
from nightmill.errors import RequestError

_LEVELS: Final = ("debug", "info", "warning", "error")
_ENTRIES: Final = 100


async def show(visit: Visit) -> Screen:
    system = await visit.api.get("/nightmill/v1/system")
    holds = await visit.api.get("/nightmill/v1/holds")
    level = await visit.api.get("/nightmill/v1/log_level")
    return Screen(
        template="system.html",
        title="System",
        document={**system, "holds": holds["data"], "log_level": level["level"], "log_levels": _LEVELS},
        live=("rows",),
        every_s=5.0,
    )


async def set_log_level(visit: Visit) -> Response:
    level = (await visit.form()).get("level")
    await visit.api.post("/nightmill/v1/log_level", {"level": level})
    return visit.redirect(
        "ui/system", notice=f"This machine logs {level} and above now, until the server restarts."
    )


async def show_settings(visit: Visit) -> Screen:
    found: list[dict[str, Any]] = (await visit.api.get("/nightmill/v1/settings"))["data"]
    search, shows_all = visit.query("q"), visit.query("all") == "1"
    chosen = [it for it in found if search is None or search.lower() in it["name"]]
    if search is None and not shows_all:
        chosen = [it for it in found if it["source"] != "default"]
    return Screen(
        template="settings.html",
        title="Settings",
        document={
            "settings": [{**it, "text": _as_text(it["value"])} for it in chosen],
            "count": len(found),
            "default_count": sum(it["source"] == "default" for it in found),
            "search": search or "",
            "shows_all": shows_all,
        },
    )


async def show_audit(visit: Visit) -> Screen:
    since = visit.query("since")
    filters = {name: visit.query(name) for name in ("project_id", "actor", "action", "subject_id")}
    page = await visit.api.get(
        "/nightmill/v1/audit",
        {**filters, "since": _moment(since), "after": visit.query("after"), "limit": _ENTRIES},
    )
    return Screen(
        template="audit.html",
        title="Audit log",
        document={
            "entries": page["data"],
            "next_after": page["last_id"],
            "filters": {**{name: value or "" for name, value in filters.items()}, "since": since or ""},
            "actions": _actions(),
        },
    )


def _actions() -> list[str]:
    """Each kind of object, followed by what is recorded of it."""
    found: dict[str, None] = {}
    for it in AuditAction:
        found[it.value.partition(".")[0]] = None
        found[it.value] = None
    return sorted(found)


def _moment(day: str | None) -> float | None:
    """Unix seconds of the start of a day in UTC."""
    if day is None:
        return None
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise RequestError("The day of 'since' is written as YYYY-MM-DD.", param="since") from None


def _as_text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case list():
            return ", ".join(map(_as_text, cast("list[object]", value))) or "empty"
        case dict():
            entries = cast("dict[str, object]", value)
            return ", ".join(f"{name}: {_as_text(below)}" for name, below in entries.items()) or "empty"
        case _:
            return str(value)


routes = (
    screen("/ui/system", show, area=SYSTEM),
    action("/ui/system/log-level", set_log_level, area=SYSTEM),
    screen("/ui/system/settings", show_settings, area=SYSTEM),
    screen("/ui/system/audit", show_audit, area=SYSTEM),
)
