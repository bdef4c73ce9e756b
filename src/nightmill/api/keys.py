"""API keys and projects under `/nightmill/v1`, for admin keys: what `nightmill keys` and `nightmill projects`
do on the server.

The secret of a key is in the response that creates the key and nowhere else.
"""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, StringConstraints

from nightmill.api.auth import CurrentActor, require_admin
from nightmill.api.body import read_json
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.tenant_wire import project_on_wire, rules_on_wire
from nightmill.api.violations import unsupported_value
from nightmill.api.wire import OwnModel
from nightmill.core.api_key import ApiKey, Scope, make_api_key
from nightmill.core.limits import Consumption
from nightmill.errors import NotFoundError
from nightmill.ids import ProjectId

_LONGEST_NAME = 200
_LONGEST_NUMBER = 1 << 62
_SHORTEST_TTL_S = 3_600
_MOST_PROJECTS = 200

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False, dependencies=[Depends(require_admin)])

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST_NAME)]
_Limit = Annotated[int, Field(ge=0, lt=_LONGEST_NUMBER)] | None
_Ttl = Annotated[int, Field(ge=_SHORTEST_TTL_S, lt=_LONGEST_NUMBER)] | None


class _CreateKeyRequest(OwnModel):
    name: _Text
    project_id: _Text = "default"
    scope: str = Scope.PROJECT.value


class _ChangeProjectRequest(OwnModel):
    """Fields that are missing stay; null means as the settings say."""

    open_batches: _Limit = None
    open_lines: _Limit = None
    open_bytes: _Limit = None
    stored_bytes: _Limit = None
    enqueued_tokens: _Limit = None
    input_ttl_s: _Ttl = None
    output_ttl_s: _Ttl = None


@router.get("/keys")
async def list_keys(context: Context) -> JsonResponse:
    """All keys, revoked ones too, in the order in which they were made."""
    keys = await context.store.api_keys.list()
    return JsonResponse({"object": "list", "data": [_key_on_wire(key) for key in keys]})


@router.post("/keys")
async def create_key(request: Request, context: Context, by: CurrentActor) -> JsonResponse:
    """`secret` is shown in this response only."""
    fields = await read_json(request, _CreateKeyRequest, settings=context.settings.api)
    if fields.scope not in tuple(Scope):
        raise unsupported_value(fields.scope, tuple(Scope), param="scope")
    secret, key = make_api_key(
        context.random,
        project_id=ProjectId(fields.project_id),
        name=fields.name,
        created_at=int(context.clock()),
        scope=Scope(fields.scope),
    )
    await context.store.api_keys.add(key, by=by)
    return JsonResponse({**_key_on_wire(key), "secret": secret})


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, context: Context, by: CurrentActor) -> JsonResponse:
    """Requests with the key, and sessions of the dashboard, end within two seconds."""
    if not await context.store.api_keys.revoke(key_id, by=by):
        raise NotFoundError(f"No key in use has the id '{echo(key_id)}'.")
    return JsonResponse({"id": key_id, "object": "key.deleted", "deleted": True})


@router.get("/projects")
async def list_projects(
    context: Context,
    after: Annotated[str, Query(description="The id of the last project of the previous page.")] = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_PROJECTS)] = 50,
) -> JsonResponse:
    """Every project that has a key, a file or a limit, by name, with what it uses of its limits."""
    page = await context.store.projects.list(after=after, limit=limit)
    defaults = context.settings.quota.limits
    data: list[dict[str, Any]] = []
    for it in page.items:
        consumption = Consumption(it.open, it.stored_bytes, {})
        document = project_on_wire(it.id, it.rules, it.rules.limits(defaults), consumption)
        del document["used"]["enqueued_tokens"]
        data.append({**document, "keys": it.keys})
    return JsonResponse({"object": "list", "data": data, "has_more": page.has_more})


@router.patch("/projects/{project_id}")
async def change_project(
    project_id: str, request: Request, context: Context, by: CurrentActor
) -> JsonResponse:
    """Sets limits of a project, and the lifetimes of its files, in place of the settings."""
    fields = await read_json(request, _ChangeProjectRequest, settings=context.settings.api)
    project = ProjectId(project_id)
    changes = {name: getattr(fields, name) for name in fields.model_fields_set}
    rules = replace(await context.store.projects.rules(project), **changes)
    await context.store.projects.set_rules(project, rules, by=by)
    return JsonResponse({"project_id": project, "own": rules_on_wire(rules)})


def _key_on_wire(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "key",
        "name": key.name,
        "project_id": key.project_id,
        "scope": key.scope.value,
        "hint": key.hint,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
