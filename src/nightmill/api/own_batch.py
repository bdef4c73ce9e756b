"""A batch under `/nightmill/v1`: what the published object has no field for.

`own_view` makes the one document of a batch that all routes of ours answer with. A key sees the batches of
its own project, as under `/v1`.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec.structs
from fastapi import APIRouter, Query

from nightmill.api.auth import CurrentProject
from nightmill.api.batch_insight import insight_of, limits_of, links_of
from nightmill.api.batches import require_after, require_batch
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.violations import unsupported_value
from nightmill.core.batch import Batch, Status
from nightmill.core.steering import BatchFilter
from nightmill.errors import RequestError

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


def own_view(batch: Batch) -> dict[str, Any]:
    """The document of a batch under `/nightmill/v1`. Times are Unix seconds."""
    reason = batch.stop_reason
    return {
        "id": batch.id,
        "object": "nightmill.batch",
        "status": batch.status,
        "endpoint": batch.endpoint,
        "model": batch.model,
        "priority": batch.priority,
        "paused_at": batch.paused_at,
        "concurrency": batch.concurrency,
        "created_at": batch.created_at,
        "deadline": batch.expires_at,
        "request_counts": {
            "total": batch.total,
            "completed": batch.tally.completed,
            "failed": batch.tally.failed,
            "invalid": batch.invalid,
        },
        "options": msgspec.structs.asdict(batch.options),
        "stop_reason": None if reason is None else {"code": reason.code, "message": reason.message},
        "metadata": None if batch.metadata is None else dict(batch.metadata),
    }


@router.get("/batches/{batch_id}")
async def retrieve(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    batch = await require_batch(context, project, batch_id)
    return JsonResponse(
        {**own_view(batch), **await insight_of(context, batch), **await links_of(context, batch)}
    )


@router.get("/batches")
async def list_batches(
    context: Context,
    project: CurrentProject,
    after: Annotated[str | None, Query(description="The id of the last batch of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[Sequence[str] | None, Query(description="Repeatable.")] = None,
    metadata: Annotated[Sequence[str] | None, Query(description="KEY=VALUE, repeatable.")] = None,
    older_than_s: Annotated[float | None, Query(ge=0)] = None,
    endpoint: Annotated[str | None, Query()] = None,
    model: Annotated[str | None, Query()] = None,
    paused: Annotated[bool | None, Query()] = None,
    id_prefix: Annotated[str | None, Query(description="The beginning of the id.")] = None,
) -> JsonResponse:
    """The batches that match every parameter, newest first."""
    wanted = BatchFilter(
        statuses=statuses_of(status or ()),
        metadata=_pairs_of(metadata or ()),
        older_than_s=older_than_s,
        endpoint=endpoint,
        model=model,
        is_paused=paused,
        id_prefix=id_prefix,
    )
    page = await context.store.steering.list(project, wanted, after=require_after(after), limit=limit)
    limits = await limits_of(context, page.items)
    data = [{**own_view(batch), "why": limits.get(batch.id)} for batch in page.items]
    return JsonResponse(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": page.has_more,
        }
    )


def statuses_of(given: Sequence[str], *, param: str = "status") -> frozenset[Status]:
    """Raises RequestError when a status does not exist."""
    known = [status.value for status in Status]
    for status in given:
        if status not in known:
            raise unsupported_value(status, known, param=param)
    return frozenset(map(Status, given))


def _pairs_of(given: Sequence[str]) -> dict[str, str] | None:
    pairs: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(
                "Invalid 'metadata': expected KEY=VALUE.", param="metadata", code="invalid_value"
            )
        pairs[key] = value
    return pairs or None
