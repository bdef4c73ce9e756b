"""The priority of a batch under `/nightmill/v1`, since a published batch has no such field.

A key sees the batches of its own project, as under `/v1`. What a priority means belongs to `core.schedule`.
"""

from fastapi import APIRouter, Request

from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.batch_wire import Priority
from nightmill.api.batches import require_batch
from nightmill.api.body import read_json
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.wire import OwnModel
from nightmill.core.batch import Batch
from nightmill.errors import ConflictError
from nightmill.ids import BatchId

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


class _PriorityRequest(OwnModel):
    priority: Priority


@router.get("/batches/{batch_id}")
async def retrieve_priority(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    return _response(await require_batch(context, project, batch_id))


@router.post("/batches/{batch_id}")
async def set_priority(
    batch_id: str, request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """Workers that hold lines of the batch take the change over within about a second."""
    fields = await read_json(request, _PriorityRequest, settings=context.settings.api)
    await require_batch(context, project, batch_id)
    if not await context.store.batches.prioritize(project, BatchId(batch_id), fields.priority, by=by):
        batch = await require_batch(context, project, batch_id)
        raise ConflictError(f"Cannot change the priority of a batch with status '{batch.status}'.")
    context.notify()
    return _response(await require_batch(context, project, batch_id))


def _response(batch: Batch) -> JsonResponse:
    return JsonResponse({"id": batch.id, "status": batch.status, "priority": batch.priority})
