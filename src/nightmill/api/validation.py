"""The validation report of a batch: every invalid line of its input file, as JSON Lines."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Response

from nightmill.api.auth import CurrentProject
from nightmill.api.batches import require_batch
from nightmill.api.context import Context
from nightmill.api.download import Download
from nightmill.core.batch import Batch, Status
from nightmill.core.file import File, Purpose
from nightmill.errors import ConflictError, NotFoundError
from nightmill.ids import FileId
from nightmill.validation import report_row

router = APIRouter(prefix="/nightmill/v1", include_in_schema=False)


@router.get("/batches/{batch_id}/validation")
async def download_report(batch_id: str, context: Context, project: CurrentProject) -> Response:
    """Empty for a batch without invalid lines."""
    batch = await require_batch(context, project, batch_id)
    if batch.status is Status.VALIDATING:
        raise ConflictError(f"Batch '{batch.id}' is still being validated; try again when it is not.")
    if batch.report_blob_key is None:
        if batch.invalid or any(error.line is not None for error in batch.errors):
            raise _deleted(batch)
        text = b"".join(report_row(error) for error in batch.errors)
        return Download(_file(batch, len(text)), _once(text))
    size_bytes = await context.blobs.size_bytes(batch.report_blob_key)
    if size_bytes is None:
        raise _deleted(batch)
    return Download(_file(batch, size_bytes), context.blobs.stream(batch.report_blob_key))


def _deleted(batch: Batch) -> NotFoundError:
    message = f"The validation report of batch '{batch.id}' is deleted: it is kept for 30 days after its end."
    return NotFoundError(message, param="batch_id")


def _file(batch: Batch, size_bytes: int) -> File:
    """The report as a file for the response; it is in no list of files."""
    return File(
        id=FileId(f"file-{batch.id}"),
        project_id=batch.project_id,
        purpose=Purpose.BATCH_OUTPUT,
        filename=f"{batch.id}_validation.jsonl",
        size_bytes=size_bytes,
        created_at=batch.created_at,
        expires_at=None,
        blob_key=batch.report_blob_key or "",
    )


async def _once(text: bytes) -> AsyncIterator[bytes]:
    yield text
