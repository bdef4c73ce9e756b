"""Batches: create, list, retrieve, cancel (docs/openai-behaviour.md 1.1, 2, 4.2).

Errors in the request itself are reported at once. Intake finds errors in the input file in the background
and sets the batch to `failed`. When a cancel races with the end of the batch, the first write decides. The
routes write only the statuses `validating` and `cancelling`; the roles do the rest.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request

from nightmill.api import batch_wire as wire
from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.body import idempotency_of, read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo, list_document
from nightmill.api.openapi import CONFLICT, TOO_LARGE, takes_json
from nightmill.api.violations import wrong_prefix
from nightmill.api.wire import is_id_shaped
from nightmill.core.audit import Actor
from nightmill.core.batch import Batch, Event, Status
from nightmill.core.file import File, Purpose
from nightmill.errors import NotFoundError, SetupError, TooManyError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId, FileId, ProjectId, new_batch_id
from nightmill.settings import LimitSettings
from nightmill.telemetry import BatchMoved

_ID_PREFIX = "batch"
_HOUR_S = 3_600
_RATE_RETRY_S = 60
_UNIT_S: Mapping[str, int] = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_WINDOW = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_STOPPING = frozenset({Status.FINALIZING, Status.CANCELLING, Status.CANCELLED})

router = APIRouter(tags=["Batch"])


def window_s(completion_window: str) -> int:
    """A completion window in seconds: `24h` -> 86400.

    Raises:
        SetupError: the text is not a number followed by `s`, `m`, `h` or `d`.
    """
    match = _WINDOW.fullmatch(completion_window)
    if match is None:
        name = "limits.completion_windows"
        message = f"setting '{name}' holds '{completion_window}'; write a number and s, m, h or d"
        raise SetupError(message)
    return int(match[1]) * _UNIT_S[match[2]]


def windows_s(limits: LimitSettings) -> Mapping[str, int]:
    return {window: window_s(window) for window in limits.completion_windows}


@router.post(
    "/batches",
    operation_id="createBatch",
    response_model=wire.Batch,
    summary="Create a batch from an uploaded file of request lines.",
    openapi_extra=takes_json(wire.CreateBatchRequest),
    responses={**CONFLICT, **TOO_LARGE},
)
async def create_batch(
    request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    limits = context.settings.limits
    windows = windows_s(limits)
    fields = await read_json(
        request,
        wire.CreateBatchRequest,
        settings=context.settings.api,
        allowed={"endpoints": limits.endpoints, "completion_windows": tuple(windows)},
    )
    fingerprint = hashlib.sha256(fields.model_dump_json().encode()).hexdigest()
    idempotency = idempotency_of(request, fingerprint=fingerprint)
    now = int(context.clock())
    await check_rate(context, project, now)
    expires_after = fields.output_expires_after
    input_file = await _input_file(context, project, FileId(fields.input_file_id))
    batch = Batch(
        id=new_batch_id(context.random(16)),
        project_id=project,
        endpoint=fields.endpoint,
        input_file_id=FileId(fields.input_file_id),
        # Empty when the file is missing or has another purpose: intake reports that in `errors`.
        input_blob_key=input_file.blob_key if input_file else "",
        input_bytes=input_file.size_bytes if input_file else 0,
        completion_window=fields.completion_window,
        created_at=now,
        expires_at=now + windows[fields.completion_window],
        metadata=fields.metadata,
        output_expires_after_s=None if expires_after is None else expires_after.seconds,
        priority=0 if fields.nightmill is None else fields.nightmill.priority,
        options=fields.options,
    )
    failpoint("api.before_batch")
    stored = await context.store.batches.create(
        batch, idempotency, limits=context.settings.quota.limits, by=by
    )
    failpoint("api.batch_created")
    if stored.id == batch.id:
        context.emit(BatchMoved(stored))
    context.notify()
    return _batch_response(stored)


async def _input_file(context: ApiContext, project: ProjectId, file_id: FileId) -> File | None:
    file = await context.store.files.get(project, file_id)
    return file if file is not None and file.purpose is Purpose.BATCH else None


async def check_rate(context: ApiContext, project: ProjectId, now: int) -> None:
    limit = context.settings.limits.batches_per_hour
    if limit and await context.store.batches.count_since(project, now - _HOUR_S) >= limit:
        message = (
            f"Rate limit reached for batches: limit {limit} created per hour and project. "
            f"Please try again in {_RATE_RETRY_S}s."
        )
        raise TooManyError(message, retry_after_s=_RATE_RETRY_S)


@router.get(
    "/batches",
    operation_id="listBatches",
    response_model=wire.ListBatchesResponse,
    summary="List this project's batches, newest first.",
)
async def list_batches(
    context: Context,
    project: CurrentProject,
    after: Annotated[str | None, Query(description="The id of the last batch of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="The largest number of batches to return.")] = 20,
) -> JsonResponse:
    page = await context.store.batches.list(project, after=require_after(after), limit=limit)
    data = [wire.batch_on_wire(batch) for batch in page.items]
    return JsonResponse(list_document(data, has_more=page.has_more))


@router.get(
    "/batches/{batch_id}",
    operation_id="retrieveBatch",
    response_model=wire.Batch,
    summary="Retrieve a batch.",
)
async def retrieve_batch(batch_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    return _batch_response(await require_batch(context, project, batch_id))


@router.post(
    "/batches/{batch_id}/cancel",
    operation_id="cancelBatch",
    response_model=wire.Batch,
    summary="Stop a batch. Lines answered until then stay in its files.",
    responses=CONFLICT,
)
async def cancel_batch(
    batch_id: str, context: Context, project: CurrentProject, by: CurrentActor
) -> JsonResponse:
    """Does not read the body: clients send none, an empty body, or `{}`."""
    return _batch_response(await cancel(context, project, batch_id, by=by))


async def cancel(context: ApiContext, project: ProjectId, batch_id: str, *, by: Actor) -> Batch:
    """Requests the cancellation; returns the batch, as it is if it is ending already.

    Raises:
        ConflictError: the batch has ended otherwise.
        NotFoundError: the project has no such batch.
    """
    while True:
        batch = await require_batch(context, project, batch_id)
        if batch.status in _STOPPING:
            return batch
        after = batch.after(Event.CANCEL_REQUESTED, now=context.clock())
        failpoint("api.before_cancel")
        if await context.store.batches.move(after, expected=batch.status, by=by):
            failpoint("api.batch_cancelling")
            context.emit(BatchMoved(after))
            context.notify()
            return after
        # Another process moved the batch first. Statuses only go forward, so this loop ends soon.


async def require_batch(context: ApiContext, project: ProjectId | None, batch_id: str) -> Batch:
    """The batch of the project, or of any project for None. Raises NotFoundError when there is none."""
    if not batch_id.startswith(_ID_PREFIX):
        raise wrong_prefix(batch_id, _ID_PREFIX, param="batch_id")
    batch = await context.store.batches.get(project, BatchId(batch_id)) if is_id_shaped(batch_id) else None
    if batch is None:
        raise batch_not_found(batch_id, param=None)
    return batch


def require_after(after: str | None) -> BatchId | None:
    """The cursor of a list of batches. Raises NotFoundError when no batch can have this id."""
    if after and not is_id_shaped(after):
        raise batch_not_found(after, param="after")
    return BatchId(after) if after else None


def batch_not_found(batch_id: str, *, param: str | None) -> NotFoundError:
    """The error for an id that is unknown, or of another project."""
    return NotFoundError(f"No batch found with id '{echo(batch_id)}'.", param=param)


def _batch_response(batch: Batch) -> JsonResponse:
    return JsonResponse(wire.batch_on_wire(batch))
