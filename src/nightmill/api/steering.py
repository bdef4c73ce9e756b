"""Pause, resume, priority, deadline and concurrency of running batches, under `/nightmill/v1`.

The published API has no such verbs, and its `status` does not show a pause. A key steers the batches of its
own project. What a change means belongs to `core.steering`. Workers take a change over within about a second.
An action on several batches makes one change after the other, each whole: what it has done stays done when a
later batch refuses it. With `delay_s` it is stored and can be undone (see `bulk_actions`).
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from nightmill.api.auth import Caller, CurrentActor, CurrentProject, caller_of
from nightmill.api.batch_query import FilterFields, filter_of, project_wanted
from nightmill.api.batch_wire import Priority
from nightmill.api.batches import batch_not_found, cancel, require_after, require_batch
from nightmill.api.body import read_json
from nightmill.api.bulk_actions import order_action, preview_action
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.own_batch import own_view
from nightmill.api.retries import LinesToRetry, lines_of
from nightmill.api.violations import missing_parameter
from nightmill.api.wire import OwnModel, is_id_shaped
from nightmill.core.audit import Actor
from nightmill.core.batch import Batch, Status
from nightmill.core.steering import (
    STEERABLE,
    BatchFilter,
    Change,
    Pause,
    Resume,
    SetConcurrency,
    SetDeadline,
    SetPriority,
    SteeringAction,
    steered,
)
from nightmill.errors import NotFoundError, RequestError
from nightmill.ids import BatchId, ProjectId
from nightmill.store.bulk_actions import Chosen

_LATEST_DEADLINE = 253_402_300_799
_LONGEST_S = 315_360_000
_MOST_CONCURRENCY = 1_000_000
_MOST_IDS = 1_000
_LONGEST_DELAY_S = 86_400
_PAGE = 100
_CANCELLABLE = STEERABLE
_OPEN = frozenset(status for status in Status if not status.is_terminal)

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


class _Values(OwnModel):
    """What a batch gets; only the keys that are given count."""

    priority: Priority = 0
    deadline: Annotated[int, Field(ge=0, le=_LATEST_DEADLINE)] = 0
    """In Unix seconds."""
    deadline_in_s: Annotated[int, Field(ge=1, le=_LONGEST_S)] = 0
    """The deadline, in seconds from now."""
    concurrency: Annotated[int, Field(ge=1, le=_MOST_CONCURRENCY)] | None = None
    """null removes the limit."""

    def changes(self, now: float) -> list[Change]:
        """The changes that are asked for."""
        given = self.model_fields_set
        if {"deadline", "deadline_in_s"} <= given:
            message = "Give either 'deadline' or 'deadline_in_s', not both."
            raise RequestError(message, param="deadline_in_s", code="invalid_value")
        changes: list[Change] = []
        if "priority" in given:
            changes.append(SetPriority(self.priority))
        if "deadline" in given:
            changes.append(SetDeadline(self.deadline))
        if "deadline_in_s" in given:
            changes.append(SetDeadline(int(now) + self.deadline_in_s))
        if "concurrency" in given:
            changes.append(SetConcurrency(self.concurrency))
        return changes


class _ActionRequest(_Values):
    action: SteeringAction = Field(strict=False)
    ids: Annotated[list[str], Field(min_length=1, max_length=_MOST_IDS)] | None = None
    filter: FilterFields | None = None
    dry_run: bool = False
    """Says what would happen, and changes nothing."""
    after: str | None = None
    """With a filter: goes on behind this batch."""
    limit: Annotated[int, Field(ge=1, le=_MOST_IDS)] = _PAGE
    """With a filter: at most so many batches in one request."""
    delay_s: Annotated[float, Field(ge=0, le=_LONGEST_DELAY_S)] | None = None
    """The action is stored, and done after so many seconds to all batches that match now. A retry is always
    stored, and begins at once without this field."""
    order_key: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Of a stored action: another request with the same key is answered with the first action."""
    project: str | None = None
    """Of a stored action, with an admin key: batches of another project, or of all with `*`."""
    codes: Annotated[list[str], Field(max_length=100)] | None = None
    """Of a retry: only lines with one of these codes."""
    outcomes: list[str] | None = None
    """Of a retry: lines with one of these outcomes; the failed ones if missing."""

    @property
    def is_stored(self) -> bool:
        return self.delay_s is not None or self.action is SteeringAction.RETRY

    @property
    def values(self) -> dict[str, Any]:
        """What a stored action gives its batches; call `wanted_changes` first, which checks it."""
        names = ("codes", "outcomes") if self.action is SteeringAction.RETRY else ("priority", "concurrency")
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    def wanted_changes(self, now: float) -> list[Change]:
        """What the action makes of each batch; empty for a cancellation."""
        changes = self.changes(now)
        match self.action:
            case SteeringAction.CANCEL | SteeringAction.RETRY:
                allowed, fixed = (), []
            case SteeringAction.PAUSE:
                allowed, fixed = (), [Pause()]
            case SteeringAction.RESUME:
                allowed, fixed = (), [Resume()]
            case SteeringAction.PRIORITIZE:
                allowed, fixed = ("priority",), []
            case SteeringAction.DEADLINE:
                allowed, fixed = ("deadline", "deadline_in_s"), []
            case SteeringAction.LIMIT:
                allowed, fixed = ("concurrency",), []
        for name in _Values.model_fields:
            if name in self.model_fields_set and name not in allowed:
                message = f"'{name}' does not belong to the action '{self.action}'."
                raise RequestError(message, param=name, code="invalid_value")
        for name, is_allowed in (
            ("codes", self.action is SteeringAction.RETRY),
            ("outcomes", self.action is SteeringAction.RETRY),
            ("order_key", self.is_stored),
            ("project", self.is_stored),
        ):
            if name in self.model_fields_set and not is_allowed:
                message = f"'{name}' does not belong to the action '{self.action}'."
                raise RequestError(message, param=name, code="invalid_value")
        if allowed and not changes:
            raise missing_parameter(allowed[0])
        return [*fixed, *changes]


@router.post("/batches/actions")
async def act(
    request: Request, context: Context, caller: Annotated[Caller, Depends(caller_of)], by: CurrentActor
) -> JsonResponse:
    """Does one thing to several batches: to those of `ids`, or to all that match `filter`."""
    fields = await read_json(request, _ActionRequest, settings=context.settings.api)
    if (fields.ids is None) == (fields.filter is None):
        raise RequestError("Give either 'ids' or 'filter'.", param="ids", code="invalid_value")
    changes = fields.wanted_changes(context.clock())
    if fields.is_stored:
        return await _stored(fields, changes, context=context, caller=caller, by=by)
    project = caller.project_id
    matched, batches, has_more = await _chosen(fields, context, project)
    results = [
        await _result(batch, fields, changes, context=context, project=project, by=by) for batch in batches
    ]
    if not fields.dry_run and any(result["result"] == "changed" for result in results):
        context.notify()
    counts = {
        name: sum(result["result"] == name for result in results)
        for name in ("changed", "unchanged", "refused", "not_found")
    }
    return JsonResponse(
        {
            "object": "nightmill.batch_action",
            "action": fields.action,
            "dry_run": fields.dry_run,
            "matched": matched,
            **counts,
            "data": results,
            "last_id": results[-1]["id"] if results else None,
            "has_more": has_more,
        }
    )


@router.post("/batches/{batch_id}")
async def change(
    batch_id: str, request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """Makes all changes of the body, or none."""
    fields = await read_json(request, _Values, settings=context.settings.api)
    changes = fields.changes(context.clock())
    if not changes:
        names = ", ".join(f"'{name}'" for name in _Values.model_fields)
        raise RequestError(f"Give at least one of {names}.", code="missing_required_parameter")
    return await _changed(batch_id, changes, context=context, project=project, by=by)


@router.post("/batches/{batch_id}/pause")
async def pause(batch_id: str, context: Context, project: CurrentProject, by: CurrentActor) -> JsonResponse:
    """Sends no further line of the batch. Attempts in flight are answered. Does not read the body."""
    return await _changed(batch_id, [Pause()], context=context, project=project, by=by)


@router.post("/batches/{batch_id}/resume")
async def resume(batch_id: str, context: Context, project: CurrentProject, by: CurrentActor) -> JsonResponse:
    """Goes on where the batch was paused. Does not read the body."""
    return await _changed(batch_id, [Resume()], context=context, project=project, by=by)


async def _stored(
    fields: _ActionRequest,
    changes: Sequence[Change],
    *,
    context: ApiContext,
    caller: Caller,
    by: Actor,
) -> JsonResponse:
    """Orders the action, or says what the order would change."""
    values = fields.values
    for change in changes:
        if isinstance(change, SetDeadline):
            values["deadline"] = change.expires_at
    if fields.action is SteeringAction.RETRY:
        lines_of(LinesToRetry(outcomes=fields.outcomes, codes=fields.codes or []))
    batches = (fields.ids or ()) if fields.filter is None else await _wanted(context, fields.filter)
    chosen = Chosen(project_wanted(caller, fields.project), batches)
    if fields.dry_run:
        return await preview_action(context, fields.action, values, chosen)
    return await order_action(
        context,
        caller.project_id,
        by,
        fields.action,
        values,
        chosen,
        delay_s=fields.delay_s or 0.0,
        key=fields.order_key,
    )


async def _changed(
    batch_id: str, changes: Sequence[Change], *, context: ApiContext, project: ProjectId, by: Actor
) -> JsonResponse:
    await require_batch(context, project, batch_id)
    found = await context.store.steering.change(project, BatchId(batch_id), changes, by=by)
    if found is None:
        raise batch_not_found(batch_id, param=None)
    batch, has_changed = found
    if has_changed:
        context.notify()
    return JsonResponse(own_view(batch))


async def _chosen(
    fields: _ActionRequest, context: ApiContext, project: ProjectId
) -> tuple[int, Sequence[Batch | str], bool]:
    """How many batches are meant, those of this request (an id where there is no such batch), and whether
    further ones follow."""
    if fields.ids is not None:
        ids = list(dict.fromkeys(fields.ids))
        found = [
            await context.store.batches.get(project, BatchId(batch_id)) if is_id_shaped(batch_id) else None
            for batch_id in ids
        ]
        chosen = [batch or batch_id for batch, batch_id in zip(found, ids, strict=True)]
        return sum(batch is not None for batch in found), chosen, False
    assert fields.filter is not None
    otherwise = _OPEN if fields.action is SteeringAction.PRIORITIZE else STEERABLE
    wanted = await _wanted(context, fields.filter, otherwise)
    steering = context.store.steering
    matched = await steering.count(project, wanted)
    page = await steering.list(project, wanted, after=require_after(fields.after), limit=fields.limit)
    return matched, page.items, page.has_more


async def _wanted(context: ApiContext, fields: FilterFields, otherwise: Iterable[Status] = ()) -> BatchFilter:
    """Raises RequestError for a filter that would match every batch."""
    if fields.is_empty:
        names = ", ".join(f"'{name}'" for name in FilterFields.model_fields)
        message = f"An empty filter would match every batch. Give at least one of {names}."
        raise RequestError(message, param="filter", code="invalid_value")
    return await filter_of(context, fields, otherwise=otherwise, within="filter.")


async def _result(
    batch: Batch | str,
    fields: _ActionRequest,
    changes: Sequence[Change],
    *,
    context: ApiContext,
    project: ProjectId,
    by: Actor,
) -> dict[str, Any]:
    """What became of one batch, or would become of it."""
    if isinstance(batch, str):
        return _row(batch, "not_found", message=batch_not_found(batch, param=None).message)
    try:
        if fields.action is SteeringAction.CANCEL:
            has_changed = batch.status in _CANCELLABLE
            if not fields.dry_run or batch.status.is_terminal:
                after = await cancel(context, project, batch.id, by=by)
            else:
                after = batch
        elif fields.dry_run:
            after = batch
            for wanted in changes:
                after = steered(after, wanted, now=context.clock())
            has_changed = after != batch
        else:
            found = await context.store.steering.change(project, batch.id, changes, by=by)
            if found is None:
                raise batch_not_found(batch.id, param=None)
            after, has_changed = found
    except NotFoundError as error:
        return _row(batch.id, "not_found", message=error.message)
    except RequestError as error:
        return _row(batch.id, "refused", batch, message=error.message)
    return _row(batch.id, "changed" if has_changed else "unchanged", after)


def _row(
    batch_id: str, result: str, batch: Batch | None = None, message: str | None = None
) -> dict[str, Any]:
    view = None if batch is None else own_view(batch)
    return {"id": batch_id, "result": result, "message": message, "batch": view}
