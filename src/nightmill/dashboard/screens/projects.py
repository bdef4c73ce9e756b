"""The screens "Keys and projects": keys of all projects, and what each project may have and has used."""

from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from nightmill.core.api_key import Scope
from nightmill.dashboard.calls import ApiRefusalError, path_of
from nightmill.dashboard.navigation import KEYS
from nightmill.dashboard.pages import Screen, respond
from nightmill.dashboard.visit import Form, Visit, action, screen

_DAY_S: Final = 86_400
_USAGE_DAYS: Final = 30
_KEYS: Final = "/nightmill/v1/keys"
_SCOPES: Final = {
    Scope.PROJECT: "its project",
    Scope.READ: "its project, read only",
    Scope.ADMIN: "everything, as the operator",
}
_LIMITS: Final = (
    ("open_batches", "Open batches", "number"),
    ("open_lines", "Their lines", "number"),
    ("open_bytes", "Bytes of their input files", "size"),
    ("stored_bytes", "Bytes of all files", "size"),
    ("enqueued_tokens", "Enqueued tokens of a model", "number"),
)
_TTLS: Final = (
    ("input_ttl_s", "Seconds that input files live"),
    ("output_ttl_s", "Seconds that output files live"),
)


async def show(visit: Visit) -> Screen:
    return await _list(visit)


async def _list(
    visit: Visit, *, wrong: str | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Screen:
    keys: list[dict[str, Any]] = (await visit.api.get(_KEYS))["data"]
    page = await visit.api.get("/nightmill/v1/projects", {"after": visit.query("after"), "limit": 50})
    used = await visit.api.get(
        "/nightmill/v1/usage", {"group_by": "project", "from": _day_before(visit, _USAGE_DAYS)}
    )
    usage = {row["project_id"]: row for row in used["data"]}
    shows_revoked = visit.query("revoked") == "1"
    projects: list[dict[str, Any]] = page["data"]
    return Screen(
        template="projects.html",
        title="Keys and projects",
        status=status,
        document={
            "keys": [key for key in reversed(keys) if shows_revoked or key["revoked_at"] is None],
            "revoked_count": sum(key["revoked_at"] is not None for key in keys),
            "shows_revoked": shows_revoked,
            "is_open": not keys,
            "own_key_id": visit.session.caller.name or None,
            "projects": [{**it, "usage": usage.get(it["project_id"])} for it in projects],
            "next_after": projects[-1]["project_id"] if page["has_more"] else None,
            "usage_days": _USAGE_DAYS,
            "scopes": {scope.value: text for scope, text in _SCOPES.items()},
            "wrong": wrong,
            "given": given or {"name": "", "project_id": "default", "scope": "project" if keys else "admin"},
        },
    )


async def create_key(visit: Visit) -> Response:
    """Shows the secret in the response, which no browser keeps: it can't be shown again."""
    form = await visit.form()
    fields = {name: form.get(name) for name in ("name", "project_id", "scope")}
    try:
        made = await visit.api.post(_KEYS, fields)
    except ApiRefusalError as refused:
        shown = await _list(visit, wrong=refused.message, given=fields, status=refused.status)
        return respond(visit.request, shown, area=KEYS.name, shows_content=False)
    secret = made.pop("secret")
    is_first = not visit.session.caller.name
    shown = Screen(
        template="new_key.html",
        title="A new key",
        document={"key": made, "secret": secret, "is_first": is_first},
    )
    response = respond(visit.request, shown, area=KEYS.name, shows_content=False)
    if is_first and (cookie := await visit.dashboard.sessions.sign_in(secret)) is not None:
        # From now on the server wants a key, and the person who made the first one has it.
        visit.dashboard.sessions.set_cookie(visit.request, response, cookie)
    return response


async def revoke_key(visit: Visit) -> Response:
    key_id = (await visit.form()).get("id")
    await visit.api.delete(path_of("nightmill", "v1", "keys", key_id))
    return visit.redirect("ui/projects", notice=f"{key_id} is revoked.")


async def show_project(visit: Visit) -> Screen:
    return await _project(visit, visit.path("id"))


async def _project(
    visit: Visit,
    project_id: str,
    *,
    wrong: str | None = None,
    given: dict[str, str] | None = None,
    status: int = 200,
) -> Screen:
    quotas = await visit.api.get("/nightmill/v1/quotas", {"project_id": project_id})
    chosen = {"project_id": project_id, "from": _day_before(visit, _USAGE_DAYS)}
    models = await visit.api.get("/nightmill/v1/usage", {**chosen, "group_by": "model"})
    days = await visit.api.get("/nightmill/v1/usage", {**chosen, "group_by": "day"})
    keys: list[dict[str, Any]] = (await visit.api.get(_KEYS))["data"]
    holds: list[dict[str, Any]] = (await visit.api.get("/nightmill/v1/holds"))["data"]
    own = quotas["own"]
    return Screen(
        template="project.html",
        title=f"Project {project_id}",
        status=status,
        document={
            **quotas,
            "rows": [_limit_row(quotas, *it) for it in _LIMITS],
            "ttls": [{"name": name, "label": label} for name, label in _TTLS],
            "models": sorted(models["data"], key=lambda row: -row["total_tokens"]),
            "bars": _bars(visit, days["data"]),
            "usage_days": _USAGE_DAYS,
            "keys": [it for it in keys if it["project_id"] == project_id and it["revoked_at"] is None],
            "hold": next(
                (it for it in holds if it["kind"] == "project" and it["subject_id"] == project_id), None
            ),
            "is_shown": visit.session.caller.project_id == project_id,
            "wrong": wrong,
            "given": given or {name: str(value) for name, value in own.items()},
        },
    )


async def change_project(visit: Visit) -> Response:
    project_id, form = visit.path("id"), await visit.form()
    names = [name for name, *_ in (*_LIMITS, *_TTLS)]
    try:
        changes = {name: _number(form, name) for name in names}
        await visit.api.patch(path_of("nightmill", "v1", "projects", project_id), changes)
    except (ValueError, ApiRefusalError) as refused:
        message = refused.message if isinstance(refused, ApiRefusalError) else str(refused)
        given = {name: form.get(name) for name in names}
        shown = await _project(visit, project_id, wrong=message, given=given, status=400)
        return respond(visit.request, shown, area=KEYS.name, shows_content=False)
    return visit.redirect(
        path_of("ui", "projects", project_id).lstrip("/"), notice="The limits are set. They hold from now on."
    )


def _number(form: Form, name: str) -> int | None:
    """The limit in a field; None for an empty one, which means as the settings say."""
    text = form.get(name).replace(",", "").replace("_", "")
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"'{name}' takes a whole number, or nothing for the value of the settings.")
    return int(text[:30])


def _limit_row(quotas: dict[str, Any], name: str, label: str, kind: str) -> dict[str, Any]:
    used: Any = quotas["used"][name]
    if name == "enqueued_tokens":
        used = max(used.values(), default=0)
    return {"name": name, "label": label, "kind": kind, "used": used, "limit": quotas["limits"][name]}


def _bars(visit: Visit, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of the last days with its requests, and the heights of its bar in hundredths of the highest."""
    by_day = {row["day"]: row for row in rows}
    highest = max((row["requests"] for row in rows), default=0) or 1
    bars: list[dict[str, Any]] = []
    for back in range(_USAGE_DAYS - 1, -1, -1):
        day = _day_before(visit, back)
        row = by_day.get(day, {})
        ok, failed = row.get("completed", 0), row.get("failed", 0)
        heights = {"ok_height": 100 * ok // highest, "failed_height": -(-100 * failed // highest)}
        bars.append({"day": day, "ok": ok, "failed": failed, **heights})
    return bars


def _day_before(visit: Visit, days: int) -> str:
    return datetime.fromtimestamp(visit.now - days * _DAY_S, UTC).date().isoformat()


routes = (
    screen("/ui/projects", show, area=KEYS),
    action("/ui/keys/create", create_key, area=KEYS),
    action("/ui/keys/revoke", revoke_key, area=KEYS),
    screen("/ui/projects/{id}", show_project, area=KEYS),
    action("/ui/projects/{id}", change_project, area=KEYS),
)
