"""Usage, quotas and the audit log of projects under `/nightmill/v1`, which OpenAI does not publish.

All routes are read-only; the command line makes changes. A key sees its own project. An admin key, and a
caller that needs no key, sees all projects.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from nightmill.api.auth import Caller, admin_required, caller_of, require_project
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.tenant_wire import day_of, entry_on_wire, groups_of, project_on_wire, usage_on_wire
from nightmill.core.api_key import Scope
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
) -> JsonResponse:
    """Newest first."""
    if caller.scope is not Scope.ADMIN:
        raise admin_required()
    page = await context.store.audit.list(
        project_id=None if project_id is None else ProjectId(project_id),
        since=since,
        before=after,
        limit=limit,
    )
    data = [entry_on_wire(entry) for entry in page.items]
    return JsonResponse({"object": "list", "data": data, "has_more": page.has_more})
