"""The recorded attempts of a batch, as one JSONL stream in the order of its segments.

Workers record attempts only for batches that were created with `record_attempts`.
"""

from collections.abc import AsyncGenerator

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import Context
from nightmill.blobs import Blobs
from nightmill.core.batch import Batch
from nightmill.errors import ConflictError
from nightmill.roles.attempt_log import attempts_prefix

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


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
