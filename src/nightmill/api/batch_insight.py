"""What limits a batch, when it will end, its progress and its history, under `/nightmill/v1/batches`.

Limit and forecast are computed for each request, from the batch, the reports of the workers and the stored
samples. So they exist for every batch, however many there are.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from msgspec.structs import asdict

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, list_document
from nightmill.core.batch import Batch
from nightmill.core.forecast import Forecast
from nightmill.core.history import BatchEvent
from nightmill.core.prices import price_of
from nightmill.core.why import Why
from nightmill.ids import BatchId
from nightmill.roles.batch_scene import Scene, read_scene
from nightmill.roles.batch_watches import recorded_why
from nightmill.store.batch_watch import Around

_MOST_EVENTS: Final = 1_000
_OF_ENDED: Final[Mapping[str, None]] = {"why": None, "forecast": None}

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


async def insight_of(context: ApiContext, batch: Batch) -> dict[str, Any]:
    """The keys `why` and `forecast` of a batch's own document; both are null when it has ended."""
    if batch.status.is_terminal:
        return dict(_OF_ENDED)
    scene = await read_scene(context.store, context.settings, now=context.clock())
    around = await context.store.batch_watch.around(batch.id)
    limit = scene.why(batch, around)
    recorded = recorded_why((await context.store.batch_watch.reports([batch.id])).get(batch.id))
    since = None if limit is None or recorded is None or not recorded.is_of(limit) else recorded.since
    return {
        "why": None if limit is None else {**why_on_wire(limit), "since": since},
        "forecast": _forecast(scene, batch, around),
    }


async def links_of(context: ApiContext, batch: Batch) -> dict[str, Any]:
    """The keys `origins` and `repeated_by` of a batch's own document: the batches whose lines it repeats, and
    those that repeat lines of it."""
    links = context.store.batch_origins
    origins, retries = await links.origins(batch.id), await links.retries(batch.id)
    return {
        "origins": [{"id": it.origin_id, "lines": it.count} for it in origins],
        "repeated_by": [{"id": it.batch.id, "lines": it.origin.count} for it in retries],
    }


async def insights_of(context: ApiContext, batches: Sequence[Batch]) -> dict[BatchId, dict[str, Any]]:
    """The same keys for each batch of a page, from a number of queries that does not depend on the page.

    A forecast is made of fewer samples than that of one batch, and a limit does not say since when.
    """
    unfinished = [batch for batch in batches if not batch.status.is_terminal]
    found: dict[BatchId, dict[str, Any]] = {batch.id: dict(_OF_ENDED) for batch in batches}
    if not unfinished:
        return found
    scene = await read_scene(context.store, context.settings, now=context.clock())
    surroundings = await context.store.batch_watch.around_page([batch.id for batch in unfinished])
    for batch in unfinished:
        around = surroundings[batch.id]
        limit = scene.why(batch, around)
        found[batch.id] = {
            "why": None if limit is None else why_on_wire(limit),
            "forecast": _forecast(scene, batch, around),
        }
    return found


def _forecast(scene: Scene, batch: Batch, around: Around) -> dict[str, Any] | None:
    expected = scene.forecast(batch, around)
    if expected is None:
        return None
    return {
        "in_flight": scene.in_flight(batch.id),
        "retrying": scene.retrying(batch.id),
        **forecast_on_wire(expected),
    }


def cost_of(context: ApiContext, batch: Batch) -> float | None:
    """What the answers of a batch have cost so far; None without a price of its model."""
    price = price_of(context.settings.token_prices, batch.model)
    return None if price is None else _rounded(price.cost(batch.tally.usage), 6)


@router.get("/batches/{batch_id}/events")
async def list_events(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    after: Annotated[int, Query(ge=0, description="The sequence of the last entry that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST_EVENTS)] = 100,
    order: Annotated[Literal["asc", "desc"], Query(description="`desc` has the newest entry first.")] = "asc",
) -> JsonResponse:
    """The history of a batch, the oldest entry first unless `order` is `desc`."""
    batch = await require_batch(context, project, batch_id)
    history = context.store.batch_events
    if order == "asc":
        events = await history.list(batch.id, after=after, limit=limit + 1)
    else:
        events = await history.newest(batch.id, before=after or None, limit=limit + 1)
    data = [event_on_wire(event) for event in events[:limit]]
    return JsonResponse(list_document(data, has_more=len(events) > limit, cursor="sequence"))


@router.get("/batches/{batch_id}/samples")
async def list_samples(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    """How far the batch was at the times that are kept, the oldest first: at most 400, the farther apart the
    older they are, and none from a week after its end on. The counts are sums since its start."""
    batch = await require_batch(context, project, batch_id)
    samples = await context.store.batch_watch.samples(batch.id)
    return JsonResponse({"object": "list", "data": [sample._asdict() for sample in samples]})


def why_on_wire(limit: Why) -> dict[str, Any]:
    """What limits a batch, as JSON."""
    return {
        "code": limit.code.value,
        "sentence": limit.sentence,
        "upstream": limit.upstream,
        "until": limit.until,
    }


def forecast_on_wire(expected: Forecast) -> dict[str, Any]:
    """A forecast, as JSON. Times are Unix seconds."""
    return {
        "lines_per_s": _rounded(expected.lines_per_s, 3),
        "output_tokens_per_s": _rounded(expected.output_tokens_per_s, 1),
        "ends_at": _rounded(expected.ends_at, 0),
        "earliest_at": _rounded(expected.earliest_at, 0),
        "latest_at": _rounded(expected.latest_at, 0),
        "deadline_odds": expected.deadline_odds,
        "usage": asdict(expected.usage),
        "tokens_to_come": expected.tokens_to_come,
        "cost": _rounded(expected.cost, 6),
        "cost_to_come": _rounded(expected.cost_to_come, 6),
    }


def event_on_wire(event: BatchEvent) -> dict[str, Any]:
    """An entry of a batch's history, as JSON."""
    return {
        "object": "nightmill.batch.event",
        "sequence": event.sequence,
        "at": event.at,
        "kind": event.kind.value,
        "actor": event.actor,
        "detail": dict(event.detail),
    }


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)
