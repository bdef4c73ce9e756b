"""Retries under `/nightmill/v1`: a new batch of the failed lines of ended batches, and the merged result.

A retry is a batch like any other, with an input file of its own. It is linked to its origins, and a retry
may itself be retried.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError
from starlette.responses import StreamingResponse

from nightmill.api import batch_wire as wire
from nightmill.api.admission import expires_at, limits_of
from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.batches import check_rate, require_batch, windows_s
from nightmill.api.body import idempotency_of, read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse
from nightmill.api.files import NOTHING_STORED, blob_key_of
from nightmill.api.merged import merged_lines, plan_of
from nightmill.api.origin_lines import ChosenLines, LineChoice, Origin, choose, origin_of, write_lines
from nightmill.api.violations import to_request_error
from nightmill.api.wire import OwnModel
from nightmill.blobs import new_blob
from nightmill.core.audit import AuditAction
from nightmill.core.batch import Batch, Status
from nightmill.core.file import File, Purpose
from nightmill.core.written_line import LineState
from nightmill.errors import ConflictError, RequestError
from nightmill.failpoints import failpoint
from nightmill.ids import ProjectId, new_batch_id, new_file_id
from nightmill.store import BatchOrigin
from nightmill.store.bulk_action_pages import NewRetry

MOST_ORIGINS: Final = 100
_FILENAME_LENGTH: Final = 200
_OUTCOMES: Final = (LineState.FAILED, LineState.EXPIRED, LineState.CANCELLED)
_NDJSON: Final = "application/x-ndjson"

router = APIRouter(prefix="/nightmill/v1/batches", include_in_schema=False)


_Code = Annotated[str, Field(min_length=1, max_length=64)]


class LinesToRetry(OwnModel):
    """Which lines are repeated, and how.

    Without `outcomes` and `codes` these are the failed lines; with `codes` alone, the lines of these codes
    whatever their outcome.
    """

    outcomes: list[str] | None = None
    codes: Annotated[list[_Code], Field(max_length=100)] = Field(default_factory=list[str])
    completion_window: str | None = None
    metadata: dict[str, Any] | None = None
    nightmill: dict[str, Any] | None = None
    dry_run: bool = False


class _RetryRequest(LinesToRetry):
    ids: Annotated[list[str], Field(min_length=1, max_length=MOST_ORIGINS)]


@router.post("/retry")
async def retry_batches(
    request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """A new batch of the chosen lines of all batches named in `ids`."""
    fields = await read_json(request, _RetryRequest, settings=context.settings.api)
    return await _retry(request, context, project, by, fields.ids, fields)


@router.post("/{batch_id}/retry")
async def retry_batch(
    batch_id: str, request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """A new batch of the chosen lines of one batch."""
    fields = await read_json(request, LinesToRetry, settings=context.settings.api)
    return await _retry(request, context, project, by, [batch_id], fields)


@router.get("/{batch_id}/merged")
async def merged_result(
    batch_id: str,
    context: Context,
    project: CurrentProject,
    by: CurrentActor,
    partial: Annotated[bool, Query(description="Also while retries are running.")] = False,
) -> StreamingResponse:
    """For each request line of the batch, in order, the newest success of the batch and its retries, else
    the newest error."""
    batch = await require_batch(context, project, batch_id)
    plan = await plan_of(context, batch, is_partial=partial)
    if context.settings.audit.downloads:
        for file_id in plan.file_ids:
            await context.store.audit.add(by, AuditAction.FILE_DOWNLOADED, file_id, project_id=project)
    return StreamingResponse(merged_lines(context.blobs, plan), media_type=_NDJSON)


async def _retry(
    request: Request,
    context: ApiContext,
    project: ProjectId,
    by: CurrentActor,
    ids: Sequence[str],
    fields: LinesToRetry,
) -> JsonResponse:
    batches = [await require_batch(context, project, batch_id) for batch_id in dict.fromkeys(ids)]
    check_origins(batches)
    if fields.dry_run:
        _, _, chosen = await _chosen(context, batches, fields)
        return JsonResponse({**_document(batches, chosen), "duplicate_custom_ids": chosen.repeats()})
    fingerprint = hashlib.sha256(f"{sorted(ids)} {fields.model_dump_json()}".encode()).hexdigest()
    idempotency = idempotency_of(request, fingerprint=fingerprint)
    new, chosen = await new_retry(context, project, batches, fields)
    if new is None:
        return JsonResponse({**_document(batches, chosen), "duplicate_custom_ids": chosen.repeats()})
    failpoint("api.before_batch")
    try:
        stored = await context.store.batch_origins.create(
            new.batch, new.file, new.origins, idempotency, limits=new.limits, by=by
        )
    except NOTHING_STORED:
        await context.blobs.delete(new.file.blob_key)
        raise
    failpoint("api.batch_created")
    if stored.id != new.batch.id:
        await context.blobs.delete(new.file.blob_key)
    context.notify()
    return JsonResponse({**_document(batches, chosen), "batch": wire.batch_on_wire(stored)})


async def new_retry(
    context: ApiContext, project: ProjectId, batches: Sequence[Batch], fields: LinesToRetry
) -> tuple[NewRetry | None, ChosenLines]:
    """The retry of ended batches, with its input file written and no row stored yet; None without lines.

    Raises:
        ConflictError: two lines have the same custom_id, or a file is deleted.
        TooManyError: the project has created as many batches as it may in an hour.
    """
    choice, origins, chosen = await _chosen(context, batches, fields)
    if not chosen.total:
        return None, chosen
    if repeats := chosen.repeats():
        message = (
            f"{repeats} of the lines have the same custom_id as a line of another batch, so they can't be in "
            "one batch; retry these batches one by one."
        )
        raise ConflictError(message, param="ids")
    created = _create_request(context, batches[0], fields)
    now = int(context.clock())
    await check_rate(context, project, now)
    file = await _input_file(context, project, origins, choice)
    new = Batch(
        id=new_batch_id(context.random(16)),
        project_id=project,
        endpoint=created.endpoint,
        input_file_id=file.id,
        input_blob_key=file.blob_key,
        input_bytes=file.size_bytes,
        completion_window=created.completion_window,
        created_at=now,
        expires_at=now + windows_s(context.settings.limits)[created.completion_window],
        metadata=created.metadata,
        output_expires_after_s=batches[0].output_expires_after_s,
        priority=0 if created.nightmill is None else created.nightmill.priority,
        options=created.options,
    )
    return NewRetry(new, file, _links(new, batches, chosen), context.settings.quota.limits), chosen


async def _chosen(
    context: ApiContext, batches: Sequence[Batch], fields: LinesToRetry
) -> tuple[LineChoice, Sequence[Origin], ChosenLines]:
    choice = lines_of(fields)
    origins = [await origin_of(context, batch) for batch in batches]
    return choice, origins, await choose(context, origins, choice)


def _create_request(context: ApiContext, origin: Batch, fields: LinesToRetry) -> wire.CreateBatchRequest:
    """The request that would create the retry; what is not given is as in the first origin.

    Raises:
        RequestError: a value is not allowed.
    """
    limits = context.settings.limits
    given = {
        "input_file_id": origin.input_file_id,
        "endpoint": origin.endpoint,
        "completion_window": fields.completion_window or origin.completion_window,
        "metadata": origin.metadata if fields.metadata is None else fields.metadata,
        "nightmill": {"priority": origin.priority, **(fields.nightmill or {})},
    }
    allowed = {"endpoints": limits.endpoints, "completion_windows": tuple(windows_s(limits))}
    try:
        return wire.CreateBatchRequest.model_validate(given, context=allowed)
    except ValidationError as error:
        raise to_request_error(error.errors(include_url=False), model=wire.CreateBatchRequest) from None


def lines_of(fields: LinesToRetry) -> LineChoice:
    """Raises RequestError for an outcome that does not exist."""
    if fields.outcomes is None:
        return LineChoice(frozenset(_OUTCOMES if fields.codes else _OUTCOMES[:1]), frozenset(fields.codes))
    if not fields.outcomes or not {*fields.outcomes} <= {*_OUTCOMES}:
        message = f"Invalid value for 'outcomes': choose from {', '.join(_OUTCOMES)}."
        raise RequestError(message, param="outcomes", code="invalid_value")
    return LineChoice(frozenset(LineState(name) for name in fields.outcomes), frozenset(fields.codes))


def check_origins(batches: Sequence[Batch]) -> None:
    """Raises RequestError unless all have ended, with answers, and have one endpoint."""
    for batch in batches:
        if not batch.status.is_terminal:
            raise ConflictError(
                f"Cannot retry a batch with status '{batch.status}': '{batch.id}' has not ended."
            )
        if batch.status is Status.FAILED:
            message = (
                f"Batch '{batch.id}' failed validation and none of its lines was sent; correct the lines and "
                "create a new batch."
            )
            raise ConflictError(message)
    if len({batch.endpoint for batch in batches}) > 1:
        named = ", ".join(sorted({batch.endpoint for batch in batches}))
        raise RequestError(f"The batches have several endpoints ({named}), and a batch has one.", param="ids")


async def _input_file(
    context: ApiContext, project: ProjectId, origins: Sequence[Origin], choice: LineChoice
) -> File:
    """The new input file, whose bytes are durable and which no row references yet."""
    file_id = new_file_id(context.random(16))
    try:
        async with new_blob(context.blobs, blob_key_of(file_id)) as writer:
            await write_lines(context, origins, choice, writer)
    except FileNotFoundError:
        raise ConflictError("A file of the batch was deleted meanwhile.") from None
    created_at = int(context.clock())
    limits = await limits_of(context, project)
    return File(
        id=file_id,
        project_id=project,
        purpose=Purpose.BATCH,
        filename=f"retry_of_{origins[0].input.filename}"[:_FILENAME_LENGTH],
        size_bytes=writer.size_bytes,
        created_at=created_at,
        expires_at=expires_at(Purpose.BATCH, created_at=created_at, expires_after_s=None, limits=limits),
        blob_key=blob_key_of(file_id),
    )


def _links(new: Batch, batches: Sequence[Batch], chosen: ChosenLines) -> list[BatchOrigin]:
    links: list[BatchOrigin] = []
    first = 0
    for batch, count in zip(batches, chosen.counts, strict=True):
        if count:
            links.append(BatchOrigin(new.id, batch.id, first, count))
        first += count
    return links


def _document(batches: Sequence[Batch], chosen: ChosenLines) -> dict[str, Any]:
    return {
        "batch": None,
        "lines": chosen.total,
        "origins": [
            {"id": batch.id, "lines": count} for batch, count in zip(batches, chosen.counts, strict=True)
        ],
        "codes": dict(chosen.by_code.most_common()),
    }
