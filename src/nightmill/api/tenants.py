"""Usage, quotas and the audit log of projects under `/nightmill/v1`, which OpenAI does not publish.

All routes are read-only; `keys` makes changes. A key sees its own project. An admin key, and a
caller that needs no key, sees all projects.
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from nightmill.api.auth import Caller, admin_required, caller_of, require_project
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.tenant_wire import day_of, entry_on_wire, groups_of, project_on_wire, usage_on_wire
from nightmill.core.api_key import Scope
from nightmill.core.audit import AuditEntry
from nightmill.ids import ProjectId

_MOST_ENTRIES = 1_000
_Caller = Annotated[Caller, Depends(caller_of)]
_ProjectId = Annotated[str | None, Query()]

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


@router.get("/usage")
async def usage(
    context: Context,
    caller: _Caller,
    project_id: _ProjectId = None,
    model: Annotated[str | None, Query()] = None,
    first: Annotated[str | None, Query(alias="from")] = None,
    last: Annotated[str | None, Query(alias="to")] = None,
    group_by: Annotated[str, Query()] = "project,model",
) -> JsonResponse:
    rows = await context.store.usage.totals(
        groups_of(group_by),
        project_id=require_project(caller, project_id),
        model=model,
        first_day=day_of(first, param="from"),
        last_day=day_of(last, param="to"),
    )
    return JsonResponse({"object": "list", "data": [usage_on_wire(row) for row in rows]})


@router.get("/quotas")
async def quotas(context: Context, caller: _Caller, project_id: _ProjectId = None) -> JsonResponse:
    project = require_project(caller, project_id) or caller.project_id
    rules = await context.store.projects.rules(project)
    consumption = await context.store.projects.consumption(project)
    defaults = context.settings.quota.limits
    return JsonResponse(project_on_wire(project, rules, rules.limits(defaults), consumption))


@router.get("/audit")
async def audit(
    context: Context,
    caller: _Caller,
    project_id: _ProjectId = None,
    since: Annotated[float | None, Query(description="Unix seconds.")] = None,
    after: Annotated[int | None, Query(description="The id of the last entry of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_ENTRIES)] = 100,
    actor: Annotated[str | None, Query(description="A name, or the last letters of a key.")] = None,
    action: Annotated[
        str | None, Query(description="Such as `key.created`, or `key` for all of keys.")
    ] = None,
    subject_id: Annotated[str | None, Query(description="The id of what was changed.")] = None,
) -> JsonResponse:
    """Newest first. With `actor`, `action` or `subject_id` it reads a part of the log at a time: a page may
    then be short, and `after` of the next one is its `last_id`.
    """
    if caller.scope is not Scope.ADMIN:
        raise admin_required()
    if (actor, action, subject_id) != (None, None, None):
        found = await context.store.audit.search(
            project_id=project_id,
            actor=actor,
            action=action,
            subject_id=subject_id,
            since=since,
            before=after,
            limit=limit,
        )
        return _entries(found.items, last_id=found.goes_on_before)
    page = await context.store.audit.list(
        project_id=None if project_id is None else ProjectId(project_id),
        since=since,
        before=after,
        limit=limit,
    )
    return _entries(page.items, last_id=page.items[-1].sequence if page.has_more else None)


def _entries(items: Sequence[AuditEntry], *, last_id: int | None) -> JsonResponse:
    data = [entry_on_wire(entry) for entry in items]
    return JsonResponse({"object": "list", "data": data, "has_more": last_id is not None, "last_id": last_id})
