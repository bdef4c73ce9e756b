"""The canary of a batch under `/nightmill/v1`: how the first lines go, and what they decided."""

from typing import Any

from fastapi import APIRouter

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.core.batch import Batch
from nightmill.core.canary import CanaryState
from nightmill.errors import NotFoundError

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


@router.get("/batches/{batch_id}/canary")
async def retrieve_canary(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    """The lines themselves are in the results of the batch."""
    batch = await require_batch(context, project, batch_id)
    view = await canary_view(context, batch)
    if view is None:
        raise NotFoundError(f"Batch '{batch.id}' has no canary: it was created without 'canary'.")
    return JsonResponse({"id": batch.id, "status": batch.status, **view})


async def canary_view(context: ApiContext, batch: Batch) -> dict[str, Any] | None:
    """State and counts of the canary; None for a batch without one."""
    options = batch.options
    if not options.canary:
        return None
    counted = await context.store.canaries.counted(batch)
    if batch.stop_reason is not None and batch.stop_reason.code == "canary_failed":
        state = CanaryState.STOPPED
    elif batch.canary_segments is not None:
        state = CanaryState.ENDED if batch.status.is_terminal else CanaryState.RUNNING
    elif counted is not None:
        state = CanaryState.PASSED
    elif batch.in_progress_at is None:
        state = CanaryState.ENDED if batch.status.is_terminal else CanaryState.RUNNING
    else:
        state = CanaryState.WHOLE
    return {
        "state": state,
        "lines": options.canary if counted is None else counted.lines,
        "completed": None if counted is None else counted.completed,
        "failed": None if counted is None else counted.failed,
        "max_failed": options.canary_max_failed,
        "stop_reason": batch.stop_reason.message
        if state is CanaryState.STOPPED and batch.stop_reason
        else None,
    }
