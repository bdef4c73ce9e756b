"""Limit, goodput and refusals of an upstream over time: `GET /nightmill/v1/upstreams/{name}/samples`.

The samples are taken by the observer; see `core.upstream_sample`.
"""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query

from nightmill.api.auth import require_admin
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.upstream_wire import why_on_wire
from nightmill.core.upstream_sample import KEPT_S, limit_changes, rates, thinned
from nightmill.store.upstream_samples import Recent

RECENT_S: Final = 300
_MOST_CHANGES: Final = 20
_MOST_SAMPLES: Final = 400

router = APIRouter(
    prefix="/nightmill/v1/upstreams", include_in_schema=False, dependencies=[Depends(require_admin)]
)


@router.get("/{name}/samples")
async def list_samples(
    name: str, context: Context, over_s: Annotated[int, Query(ge=10, le=KEPT_S)] = 600
) -> JsonResponse:
    """The samples of the last `over_s` seconds, and the last changes of the limit among them.

    Those of the last ten minutes are 5 s apart, those of the last six hours 60 s, and those before 15 min,
    for a week. Nothing is stored between two full minutes while nothing changes. Of more than 400 samples
    those on a coarser grid are listed.
    """
    found = await context.store.upstream_samples.of(name, since=context.clock() - over_s)
    samples = thinned(found, over_s=over_s, most=_MOST_SAMPLES)
    rising = {count: rates(samples, count) for count in ("answered", "refused", "failed", "output_tokens")}
    data = [
        {
            "at": sample.at,
            "limit": sample.concurrency_limit,
            "rule": sample.rule,
            "in_flight": sample.in_flight,
            "waiting": sample.waiting,
            **{f"{count}_per_s": rates_per_s[number] for count, rates_per_s in rising.items()},
            "engine_running": sample.engine_running,
            "engine_waiting": sample.engine_waiting,
            "kv_use": sample.kv_use,
        }
        for number, sample in enumerate(samples)
    ]
    changes = [
        {
            "at": change.at,
            "from": change.before,
            "to": change.after,
            "rule": change.rule,
            "why": None if change.rule is None else why_on_wire(change.after, change.rule),
        }
        for change in limit_changes(found, most=_MOST_CHANGES)
    ]
    return JsonResponse({"object": "list", "data": data, "limit_changes": changes})


async def recent_by_upstream(context: ApiContext) -> dict[str, dict[str, Any]]:
    """What was counted in the last `RECENT_S` seconds, by the name of the upstream."""
    recent = await context.store.upstream_samples.recent(since=context.clock() - RECENT_S)
    return {name: _recent_on_wire(counted) for name, counted in recent.items()}


def _recent_on_wire(recent: Recent) -> dict[str, Any]:
    over_s = recent.over_s
    return {
        "over_s": over_s,
        "answered": recent.answered,
        "refused": recent.refused,
        "failed": recent.failed,
        "output_tokens": recent.output_tokens,
        "answered_per_s": round(recent.answered / over_s, 3) if over_s else None,
        "output_tokens_per_s": round(recent.output_tokens / over_s, 3) if over_s else None,
    }
