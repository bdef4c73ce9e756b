"""A batch under `/nightmill/v1`: what the published object has no field for.

`own_view` makes the one document of a batch that all routes of ours answer with. A key sees the batches of
its own project, as under `/v1`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec.structs
from fastapi import APIRouter, Depends, Query

from nightmill.api.auth import Caller, caller_of
from nightmill.api.batch_insight import cost_of, insight_of, insights_of, links_of
from nightmill.api.batch_query import BatchQuery
from nightmill.api.batches import require_after, require_batch
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse
from nightmill.core.api_key import Scope
from nightmill.core.batch import Batch, Status
from nightmill.core.batch_facets import BatchGroup, facets_of, metadata_facets
from nightmill.core.steering import BatchOrder
from nightmill.roles.batch_scene import Scene, read_scene

_STAMPED: Final = tuple(status.value for status in Status if status is not Status.VALIDATING)
_COUNTED_METADATA: Final = 1_000
_MOST_KEYS: Final = 20
_MOST_VALUES: Final = 100

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


def own_view(batch: Batch) -> dict[str, Any]:
    """The document of a batch under `/nightmill/v1`. Times are Unix seconds."""
    reason = batch.stop_reason
    return {
        "id": batch.id,
        "object": "nightmill.batch",
        "project": batch.project_id,
        "status": batch.status,
        "endpoint": batch.endpoint,
        "model": batch.model,
        "priority": batch.priority,
        "paused_at": batch.paused_at,
        "concurrency": batch.concurrency,
        "created_at": batch.created_at,
        "deadline": batch.expires_at,
        **{f"{stamp}_at": getattr(batch, f"{stamp}_at") for stamp in _STAMPED},
        "request_counts": {
            "total": batch.total,
            "completed": batch.tally.completed,
            "failed": batch.tally.failed,
            "invalid": batch.invalid,
        },
        "retries": batch.retries,
        "usage": msgspec.structs.asdict(batch.tally.usage),
        "input_file_id": batch.input_file_id,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "options": msgspec.structs.asdict(batch.options),
        "stop_reason": None if reason is None else {"code": reason.code, "message": reason.message},
        "metadata": None if batch.metadata is None else dict(batch.metadata),
    }


@router.get("/batches")
async def list_batches(
    context: Context,
    wanted: BatchQuery,
    after: Annotated[
        str | None, Query(description="The cursor of the previous page: its next_after, or its last id.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[
        BatchOrder, Query(description="newest, or unfinished_first: those that have not ended come first.")
    ] = BatchOrder.NEWEST,
) -> JsonResponse:
    """The batches that match every parameter."""
    page = await context.store.steering.list(
        wanted.project, wanted.filter, order=order, after=_cursor(after), limit=limit
    )
    insights = await insights_of(context, page.items)
    names = await context.store.files.names([batch.input_file_id for batch in page.items])
    data = [
        {
            **own_view(batch),
            "file_name": names.get(batch.input_file_id),
            "cost": cost_of(context, batch),
            **insights[batch.id],
        }
        for batch in page.items
    ]
    return JsonResponse(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "next_after": page.cursor if page.has_more else None,
            "has_more": page.has_more,
        }
    )


@router.get("/batches/facets")
async def list_facets(context: Context, wanted: BatchQuery) -> JsonResponse:
    """How many batches match, and how many there are of each status, model, endpoint and more."""
    counts = context.store.batch_counts
    facets = facets_of(await counts.groups(wanted.project, wanted.filter), wanted.filter)
    newest = await counts.metadata_of_newest(wanted.project, wanted.filter, most=_COUNTED_METADATA)
    scene = await read_scene(context.store, context.settings, now=context.clock())
    return JsonResponse(
        {
            "object": "nightmill.batch_facets",
            "total": facets.total,
            "paused": facets.paused,
            "status": _values(facets.statuses),
            "model": _values(facets.models),
            "endpoint": _values(facets.endpoints),
            "project": _values(facets.projects),
            "upstream": _values(_by_upstream(scene, facets.groups)),
            "metadata": [
                {
                    "key": key,
                    "values": [{"value": value, "count": count} for value, count in values],
                    "has_more": values_in_all > len(values),
                }
                for key, (values, values_in_all) in metadata_facets(
                    newest, most_keys=_MOST_KEYS, most_values=_MOST_VALUES
                ).items()
            ],
            "metadata_of_newest": len(newest),
        }
    )


@router.get("/batches/{batch_id}")
async def retrieve(
    batch_id: str, context: Context, caller: Annotated[Caller, Depends(caller_of)]
) -> JsonResponse:
    """A batch of the caller's project; for an admin key, of any project."""
    project = None if caller.scope is Scope.ADMIN else caller.project_id
    batch = await require_batch(context, project, batch_id)
    names = await context.store.files.names([batch.input_file_id])
    return JsonResponse(
        {
            **own_view(batch),
            "file_name": names.get(batch.input_file_id),
            "cost": cost_of(context, batch),
            **await insight_of(context, batch),
            **await links_of(context, batch),
        }
    )


def _cursor(after: str | None) -> str | None:
    """Raises NotFoundError when no batch can have the id in the cursor."""
    if after:
        require_after(after.rpartition(":")[2])
    return after or None


def _values(counts: Mapping[Any, int]) -> list[dict[str, Any]]:
    return [{"value": value, "count": count} for value, count in list(counts.items())[:_MOST_VALUES]]


def _by_upstream(scene: Scene, groups: Sequence[BatchGroup]) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for group in groups:
        for upstream in scene.serving(group.model or None, group.endpoint):
            counts[upstream] += group.count
    return dict(counts.most_common())
