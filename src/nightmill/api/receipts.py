"""The receipt of a batch that has ended: lines by outcome, errors by code, tokens, time and cost.

Counts and times are those of the batch's row. Errors are counted from the error file while the request waits;
without the file there are no counts by code. Upstreams are known only for batches that were created with
`record_attempts`; the numbers of attempts then come from the record.
"""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec.structs import asdict
from starlette.responses import StreamingResponse

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.origin_lines import error_lines
from nightmill.blobs import Blobs
from nightmill.core.batch import Batch, Status
from nightmill.core.prices import price_of
from nightmill.core.written_line import LineState, codes_of, state_of_error
from nightmill.errors import ConflictError
from nightmill.roles.attempt_log import attempts_prefix

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


@router.get("/{batch_id}/receipt")
async def receipt(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    batch = await require_batch(context, project, batch_id)
    if not batch.status.is_terminal:
        raise ConflictError(f"Batch '{batch.id}' is {batch.status}; its receipt is made when it has ended.")
    return JsonResponse(await _receipt(context, batch))


@router.get("/{batch_id}/attempts")
async def attempts(batch_id: str, context: Context, project: CurrentProject) -> StreamingResponse:
    """One line for each attempt that was written so far; of a running batch the newest ones are missing."""
    batch = await require_batch(context, project, batch_id)
    if not batch.options.record_attempts:
        raise ConflictError(f"Batch '{batch.id}' was created without 'record_attempts'.")
    return StreamingResponse(attempt_lines(context.blobs, batch), media_type="application/x-ndjson")


async def attempt_lines(blobs: Blobs, batch: Batch) -> AsyncGenerator[bytes]:
    """The recorded attempts in chunks of whole lines."""
    for key in sorted([key async for key in blobs.keys_under(attempts_prefix(batch.id))]):
        size_bytes = await blobs.size_bytes(key)
        if size_bytes:  # else deleted meanwhile
            yield await blobs.read(key, 0, size_bytes)


async def _receipt(context: ApiContext, batch: Batch) -> dict[str, Any]:
    errors = await _errors(context, batch)
    unanswered: Counter[LineState] = Counter()
    for code, count in (errors or {}).items():
        unanswered[state_of_error(code)] += count
    price = price_of(context.settings.token_prices, batch.model)
    reason = batch.stop_reason
    origins = await context.store.batch_origins.origins(batch.id)
    retries = await context.store.batch_origins.retries(batch.id)
    return {
        "id": batch.id,
        "object": "nightmill.receipt",
        "status": batch.status,
        "stop_reason": None if reason is None else {"code": reason.code, "message": reason.message},
        "lines": {
            "total": batch.total,
            "answered": batch.tally.completed,
            "failed": batch.tally.failed - batch.invalid,
            "expired": None if errors is None else unanswered[LineState.EXPIRED],
            "cancelled": None if errors is None else unanswered[LineState.CANCELLED],
            "invalid": batch.invalid,
        },
        "errors": None if errors is None else dict(errors.most_common()),
        **await _attempts(context, batch),
        "usage": asdict(batch.tally.usage),
        "seconds": _seconds(batch),
        "cost": None if price is None else price.cost(batch.tally.usage),
        "deadline": batch.expires_at,
        "deadline_met": _is_deadline_met(batch),
        "origins": [{"id": it.origin_id, "lines": it.count} for it in origins],
        "retries": [retry.batch.id for retry in retries],
    }


async def _errors(context: ApiContext, batch: Batch) -> Counter[str] | None:
    """How many lines have each code; None if the error file is deleted."""
    counts: Counter[str] = Counter()
    if batch.error_file_id is None:
        return counts
    file = await context.store.files.get(batch.project_id, batch.error_file_id)
    if file is None:
        return None
    try:
        async for line in error_lines(context, batch, file):
            counts[codes_of(line)[0]] += 1
    except FileNotFoundError:  # deleted while it was read
        return None
    return counts


async def _attempts(context: ApiContext, batch: Batch) -> dict[str, Any]:
    """How many attempts there were. After the death of a worker the numbers are a lower bound."""
    if not batch.options.record_attempts:
        sent = batch.tally.answered - batch.invalid + batch.retries
        return {"attempts": {"sent": sent, "retried": batch.retries}, "upstreams": None}
    upstreams: Counter[str] = Counter()
    repeats = 0
    async for chunk in attempt_lines(context.blobs, batch):
        for text in chunk.splitlines():
            record = _record(text)
            upstreams[record.upstream] += 1
            repeats += record.attempt > 1
    counts = {"sent": upstreams.total(), "retried": repeats}
    return {"attempts": counts, "upstreams": dict(upstreams.most_common())}


class _Record(msgspec.Struct, gc=False):
    upstream: str
    attempt: int


_record = msgspec.json.Decoder(_Record).decode


def _seconds(batch: Batch) -> dict[str, int | None]:
    """How long each phase took; None for a phase that the batch did not have."""
    ended_at = batch.newest_stamp
    joined_from = batch.finalizing_at or batch.cancelling_at
    started_at = batch.in_progress_at
    return {
        "total": ended_at - batch.created_at,
        "validating": (started_at or joined_from or ended_at) - batch.created_at,
        "in_progress": None if started_at is None else (joined_from or ended_at) - started_at,
        "finalizing": None if joined_from is None else ended_at - joined_from,
    }


def _is_deadline_met(batch: Batch) -> bool | None:
    """Whether all lines were answered in time; None for a batch that was cancelled or failed."""
    if batch.status is Status.EXPIRED:
        return False
    if batch.status is not Status.COMPLETED or batch.finalizing_at is None:
        return None
    return batch.finalizing_at <= batch.expires_at
