"""Actions on many batches that are stored: ordered, followed, called off and undone.

`POST /nightmill/v1/batches/actions` with `delay_s` makes one (see `steering`). The server that took the order
does the first pages before it answers; `action_runner` of any server does the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query

from nightmill.api.action_runner import do_pages
from nightmill.api.auth import Caller, CurrentActor, CurrentProject, caller_of, require_project
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo, list_document
from nightmill.api.own_batch import own_view
from nightmill.api.violations import unsupported_value
from nightmill.core.audit import Actor
from nightmill.core.bulk_action import BulkAction, BulkActionState, ItemResult
from nightmill.core.steering import BatchFilter, SteeringAction
from nightmill.errors import NotFoundError
from nightmill.ids import ProjectId, new_action_id
from nightmill.store.bulk_actions import Chosen

_FIRST: Final = 10
_ANSWER_WITHIN_S: Final = 0.5

router = APIRouter(prefix="/nightmill/v1/batches/actions", include_in_schema=False)


async def _scope_of(caller: Annotated[Caller, Depends(caller_of)]) -> ProjectId | None:
    """The project whose actions a key may see and undo; None, all of them, for an admin key."""
    return require_project(caller, None)


_ActionScope = Annotated[ProjectId | None, Depends(_scope_of)]


async def order_action(
    context: ApiContext,
    project: ProjectId,
    by: Actor,
    action: SteeringAction,
    values: Mapping[str, Any],
    chosen: Chosen,
    *,
    delay_s: float,
    key: str | None,
) -> JsonResponse:
    """Stores the action; without a delay, its first pages are done before the answer.

    Args:
        key: a repeated order with the same key is answered with the first action.
    """
    ordered = await context.store.bulk_actions.order(
        new_action_id(context.random(16)),
        project,
        action,
        values,
        chosen,
        delay_s=delay_s,
        by=by,
        key=key,
    )
    if not delay_s:
        await do_pages(context, ordered.id, within_s=_ANSWER_WITHIN_S)
    return JsonResponse(await _document(context, project, ordered.id))


async def preview_action(
    context: ApiContext,
    action: SteeringAction,
    values: Mapping[str, Any],
    chosen: Chosen,
) -> JsonResponse:
    """What an order would change now: how many batches, the first of them, and which are left alone."""
    counts, newest = await context.store.bulk_actions.preview(action, values, chosen, first=_FIRST)
    kinds = sorted(counts.kinds.items())
    return JsonResponse(
        {
            "object": "nightmill.bulk_action_preview",
            "action": action,
            "values": dict(values),
            "matched": counts.matched,
            "total": counts.total,
            "not_found": 0
            if isinstance(chosen.batches, BatchFilter)
            else len(set(chosen.batches)) - counts.matched,
            "failed_lines": sum(failed for (*_, is_meant), (_, failed, _) in kinds if is_meant),
            "open_lines": sum(left for (*_, is_meant), (_, _, left) in kinds if is_meant),
            "left_alone": [
                {"status": status, "paused": is_paused, "count": count}
                for (status, is_paused, is_meant), (count, _, _) in kinds
                if not is_meant
            ],
            "data": [own_view(batch) for batch in newest],
        }
    )


@router.get("")
async def list_actions(
    context: Context,
    project: CurrentProject,
    after: Annotated[str | None, Query(description="The id of the last action of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JsonResponse:
    """The actions on many batches that were ordered, newest first."""
    page = await context.store.bulk_actions.list(project, after=after, limit=limit)
    data = [action_on_wire(action, now) for action, now in page.items]
    return JsonResponse(list_document(data, has_more=page.has_more))


@router.get("/{action_id}")
async def retrieve_action(action_id: str, context: Context, project: _ActionScope) -> JsonResponse:
    """Where the action is, and until when it can be undone."""
    return JsonResponse(await _document(context, project, action_id))


@router.get("/{action_id}/batches")
async def list_batches_of_action(
    action_id: str,
    context: Context,
    project: _ActionScope,
    after: Annotated[int, Query(ge=0, description="The sequence of the last entry that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    result: Annotated[Sequence[str] | None, Query(description="Repeatable.")] = None,
) -> JsonResponse:
    """What became of each batch of the action, the oldest batch first."""
    await _require(context, project, action_id)
    known = [it.value for it in ItemResult]
    for name in result or ():
        if name not in known:
            raise unsupported_value(name, known, param="result")
    page = await context.store.bulk_actions.items(
        action_id, results=[ItemResult(name) for name in result or ()], after=after, limit=limit
    )
    data = [
        {
            "object": "nightmill.bulk_action.batch",
            "sequence": item.sequence,
            "id": item.batch_id,
            "result": item.result,
            "message": item.message,
            "retry_id": item.retry_id,
        }
        for item in page.items
    ]
    return JsonResponse(list_document(data, has_more=page.has_more, cursor="sequence"))


@router.delete("/{action_id}")
async def undo_action(
    action_id: str, context: Context, project: _ActionScope, by: CurrentActor
) -> JsonResponse:
    """Calls off an action that has not begun, undoes one that can be undone, or stops it where it is."""
    undone = await context.store.bulk_actions.undo(project, action_id, by=by)
    if undone is None:
        raise _not_found(action_id)
    if undone.state is BulkActionState.UNDOING:
        await do_pages(context, action_id, within_s=_ANSWER_WITHIN_S)
    return JsonResponse(await _document(context, project, action_id))


@router.post("/{action_id}/start")
async def start_action(action_id: str, context: Context, project: _ActionScope) -> JsonResponse:
    """Ends the wait of an action that has not begun. Does not read the body."""
    if await context.store.bulk_actions.start(project, action_id) is None:
        raise _not_found(action_id)
    await do_pages(context, action_id, within_s=_ANSWER_WITHIN_S)
    return JsonResponse(await _document(context, project, action_id))


def action_on_wire(action: BulkAction, now: float) -> dict[str, Any]:
    """The document of an action.

    Args:
        now: the store's time. Waits are in seconds from it, because the client's clock may differ.
    """
    undo, until = _undo(action), action.undo_until(now)
    counts = {result.value: action.counts.get(result, 0) for result in ItemResult}
    return {
        "id": action.id,
        "object": "nightmill.bulk_action",
        "action": action.action,
        "values": dict(action.values),
        "state": action.state,
        "by": action.by.name,
        "created_at": action.created_at,
        "due_at": action.due_at,
        "starts_in_s": max(0.0, action.due_at - now) if action.state is BulkActionState.PENDING else None,
        "ended_at": action.ended_at,
        "matched": action.matched,
        "total": action.total,
        "done": sum(count for name, count in counts.items() if name != ItemResult.UNDONE),
        **counts,
        "undo": None if until is None else undo,
        "undo_left_s": None if until is None else max(0.0, until - now),
        "waits_for": action.note,
    }


def _undo(action: BulkAction) -> str:
    """What a DELETE does."""
    if action.state is BulkActionState.PENDING:
        return "call_off"
    return "undo" if action.is_reversible else "stop"


async def _require(
    context: ApiContext, project: ProjectId | None, action_id: str
) -> tuple[BulkAction, float]:
    found = await context.store.bulk_actions.get(project, action_id)
    if found is None:
        raise _not_found(action_id)
    return found


async def _document(context: ApiContext, project: ProjectId | None, action_id: str) -> dict[str, Any]:
    return action_on_wire(*await _require(context, project, action_id))


def _not_found(action_id: str) -> NotFoundError:
    return NotFoundError(f"No action found with id '{echo(action_id)}'.")
