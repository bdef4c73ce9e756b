"""Files that arrive in parts (docs/openai-behaviour.md 1.3).

Create an upload, add parts, complete or cancel it. An upload becomes a file exactly once, for any number of
concurrent requests. A refused complete leaves the upload pending, so that the client can try again. Large
parts become the pieces of the file without a copy; small parts are joined with constant memory. Maintenance
deletes the parts of ended uploads and expires overdue uploads.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from nightmill.api import file_wire as wire
from nightmill.api.admission import check_batch_input, expires_at, limits_of
from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.body import read_json
from nightmill.api.context import ApiContext, Context
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.files import NOTHING_STORED, blob_key_of
from nightmill.api.multipart import (
    BEGINNING_BYTES,
    Form,
    FormPlan,
    checked_filename,
    receive_form,
    without_controls,
)
from nightmill.api.openapi import CONFLICT, TOO_LARGE, takes_json, takes_multipart
from nightmill.api.upload_limiter import Limiter
from nightmill.api.violations import above_maximum, missing_parameter
from nightmill.api.wire import is_id_shaped
from nightmill.blobs import Piece, new_blob
from nightmill.blobs.pieces import SUFFIX
from nightmill.core.file import File, Purpose, Upload, UploadPart, UploadStatus
from nightmill.errors import NotFoundError, RequestError
from nightmill.failpoints import failpoint
from nightmill.ids import ProjectId, UploadId, new_file_id, new_part_id, new_upload_id

UPLOAD_TTL_S = 3_600
MAX_PARTS = 10_000
_MIME_TYPE_LENGTH = 255

router = APIRouter(tags=["Uploads"])


@router.post(
    "/uploads",
    operation_id="createUpload",
    summary="Open an upload that takes a file in parts.",
    response_model=wire.Upload,
    openapi_extra=takes_json(wire.CreateUploadRequest),
    responses=TOO_LARGE,
)
async def create_upload(
    request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> Response:
    fields = await read_json(request, wire.CreateUploadRequest, settings=context.settings.api)
    max_bytes = context.settings.limits.upload_bytes
    if fields.bytes > max_bytes:
        raise above_maximum("bytes", max_bytes, fields.bytes)
    created_at = int(context.clock())
    upload = Upload(
        id=new_upload_id(context.random(16)),
        project_id=project,
        purpose=Purpose(fields.purpose),
        filename=checked_filename(fields.filename, param="filename"),
        mime_type=without_controls(fields.mime_type)[:_MIME_TYPE_LENGTH],
        size_bytes=fields.bytes,
        created_at=created_at,
        expires_at=created_at + UPLOAD_TTL_S,
        file_expires_after_s=fields.expires_after.seconds if fields.expires_after else None,
    )
    await context.store.uploads.add(upload, by=by)
    return JsonResponse(wire.upload_on_wire(upload))


@router.post(
    "/uploads/{upload_id}/parts",
    operation_id="addUploadPart",
    summary="Add a part.",
    response_model=wire.UploadPart,
    openapi_extra=takes_multipart(wire.AddUploadPartRequest),
)
async def add_upload_part(
    upload_id: str, request: Request, context: Context, project: CurrentProject, limiter: Limiter
) -> Response:
    upload = await _require_pending(upload_id, context, project)
    limits = context.settings.limits
    earlier = await context.store.uploads.parts(upload.id)
    if len(earlier) >= MAX_PARTS:
        raise RequestError(f"Upload '{upload.id}' has {MAX_PARTS} parts already and takes no more.")
    remaining_bytes = limits.upload_bytes - sum(part.size_bytes for part in earlier)
    part_id = new_part_id(context.random(16))
    blob_key = f"uploads/{upload.id}/{part_id}"
    plan = FormPlan(
        file_field="data",
        open_writer=lambda: context.blobs.open_writer(blob_key),
        limit_bytes=lambda _: min(limits.upload_part_bytes, remaining_bytes),
        idle_s=context.settings.api.upload_idle_s,
    )
    with limiter.slot():
        async with receive_form(request, plan) as form:
            _require_data(form)
            await form.commit()
    created_at = int(context.clock())
    part = UploadPart(part_id, upload.id, form.size_bytes, created_at, blob_key)
    failpoint("api.before_part")
    try:
        is_added = await context.store.uploads.add_part(part)
    except NOTHING_STORED:
        await context.blobs.delete(blob_key)
        raise
    failpoint("api.part_added")
    if not is_added:
        await context.blobs.delete(blob_key)
        await _require_pending(upload_id, context, project)
        raise _not_pending(upload)
    return JsonResponse(wire.upload_part_on_wire(part))


@router.post(
    "/uploads/{upload_id}/complete",
    operation_id="completeUpload",
    summary="Make a file of the parts.",
    response_model=wire.Upload,
    openapi_extra=takes_json(wire.CompleteUploadRequest),
    responses={**CONFLICT, **TOO_LARGE},
)
async def complete_upload(
    upload_id: str,
    request: Request,
    context: Context,
    project: CurrentProject,
    by: CurrentActor,
    limiter: Limiter,
) -> Response:
    fields = await read_json(request, wire.CompleteUploadRequest, settings=context.settings.api)
    with limiter.exclusive(upload_id):
        upload = await _require_pending(upload_id, context, project)
        parts = _selected_parts(fields.part_ids, await context.store.uploads.parts(upload.id))
        _require_size(upload, parts)
        try:
            if upload.purpose is Purpose.BATCH:
                beginning = await _beginning(context, parts)
                check_batch_input(beginning, size_bytes=upload.size_bytes)
            if fields.md5 is not None:
                await _require_md5(parts, context, fields.md5)
            file = await _file_from_parts(upload, parts, context)
        except FileNotFoundError:
            # Parts are deleted only after an upload has ended, so another request ended this upload.
            await _require_pending(upload_id, context, project)
            raise
        failpoint("api.before_complete")
        part_keys = [part.blob_key for part in parts] if file.blob_key != blob_key_of(file.id) else []
        try:
            is_completed = await context.store.uploads.complete(
                upload, file, part_keys=part_keys, limits=context.settings.quota.limits, by=by
            )
        except NOTHING_STORED:
            await _delete_joined(file, part_keys, context)
            raise
        failpoint("api.upload_completed")
        if not is_completed:
            await _delete_joined(file, part_keys, context)
            await _require_pending(upload_id, context, project)
            raise _not_pending(upload)
    completed = replace(upload, status=UploadStatus.COMPLETED, file_id=file.id)
    return JsonResponse(wire.upload_on_wire(completed, file))


@router.post(
    "/uploads/{upload_id}/cancel",
    operation_id="cancelUpload",
    summary="Give an upload up.",
    response_model=wire.Upload,
)
async def cancel_upload(
    upload_id: str, context: Context, project: CurrentProject, by: CurrentActor
) -> Response:
    upload = await _require_upload(upload_id, context, project)
    if upload.status is not UploadStatus.CANCELLED:
        failpoint("api.before_upload_cancel")
        if not await context.store.uploads.cancel(upload, by=by):
            raise _not_pending(await _require_upload(upload_id, context, project))
        failpoint("api.upload_cancelled")
        upload = replace(upload, status=UploadStatus.CANCELLED)
    return JsonResponse(wire.upload_on_wire(upload))


# --- the upload of a request ---------------------------------------------------------------------------


async def _require_upload(upload_id: str, context: ApiContext, project: ProjectId) -> Upload:
    upload = (
        await context.store.uploads.get(project, UploadId(upload_id)) if is_id_shaped(upload_id) else None
    )
    if upload is None:
        raise NotFoundError(f"No such Upload object: {echo(upload_id)}", param="upload_id")
    return upload


async def _require_pending(upload_id: str, context: ApiContext, project: ProjectId) -> Upload:
    upload = await _require_upload(upload_id, context, project)
    if upload.status is not UploadStatus.PENDING:
        raise _not_pending(upload)
    return upload


def _not_pending(upload: Upload) -> RequestError:
    file_note = f" Its file is '{upload.file_id}'." if upload.file_id else ""
    message = f"Upload '{upload.id}' is no longer pending: it is {upload.status}.{file_note}"
    return RequestError(message, param="upload_id")


# --- from parts to a file ------------------------------------------------------------------------------


def _require_data(form: Form) -> None:
    if not form.has_file:
        raise missing_parameter("data")


def _selected_parts(part_ids: Sequence[str], parts: Sequence[UploadPart]) -> Sequence[UploadPart]:
    by_id: dict[str, UploadPart] = {part.id: part for part in parts}
    chosen: dict[str, UploadPart] = {}
    for part_id in part_ids:
        if part_id not in by_id:
            message = f"No such Part object in this upload: {echo(part_id)}"
            raise RequestError(message, param="part_ids", code="invalid_value")
        if part_id in chosen:
            message = f"Part '{part_id}' is named more than once."
            raise RequestError(message, param="part_ids", code="invalid_value")
        chosen[part_id] = by_id[part_id]
    return tuple(chosen.values())


def _require_size(upload: Upload, parts: Sequence[UploadPart]) -> None:
    got = sum(part.size_bytes for part in parts)
    if got != upload.size_bytes:
        message = (
            f"The parts have {got} bytes together, but this upload is for {upload.size_bytes} bytes. "
            "Send what is missing, or name other parts, and complete it again."
        )
        raise RequestError(message, param="bytes", code="invalid_value")


async def _beginning(context: ApiContext, parts: Sequence[UploadPart]) -> bytes:
    beginning = b""
    for part in parts:
        if len(beginning) == BEGINNING_BYTES:
            break
        beginning += await context.blobs.read(part.blob_key, 0, BEGINNING_BYTES - len(beginning))
    return beginning


async def _require_md5(parts: Sequence[UploadPart], context: ApiContext, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        async for chunk in context.blobs.stream(part.blob_key):
            await asyncio.to_thread(digest.update, chunk)
    if digest.hexdigest() != md5.strip().lower():
        message = (
            f"The parts' MD5 is {digest.hexdigest()}, not the one that was given. "
            "Send or order the parts anew."
        )
        raise RequestError(message, param="md5", code="invalid_value")


async def _file_from_parts(upload: Upload, parts: Sequence[UploadPart], context: ApiContext) -> File:
    file_id = new_file_id(context.random(16))
    blob_key = await _join_parts(blob_key_of(file_id), parts, context)
    created_at = int(context.clock())
    return File(
        id=file_id,
        project_id=upload.project_id,
        purpose=upload.purpose,
        filename=upload.filename,
        size_bytes=upload.size_bytes,
        created_at=created_at,
        expires_at=expires_at(
            upload.purpose,
            created_at=created_at,
            expires_after_s=upload.file_expires_after_s,
            limits=await limits_of(context, upload.project_id),
        ),
        blob_key=blob_key,
    )


async def _join_parts(blob_key: str, parts: Sequence[UploadPart], context: ApiContext) -> str:
    """The key of a blob with all parts in order: the only part, a blob of pieces, or a copy at `blob_key`."""
    if len(parts) == 1:
        return parts[0].blob_key
    least_bytes = context.settings.blobs.piece_bytes * len(parts)
    if sum(part.size_bytes for part in parts) >= least_bytes > 0:
        pieces = [Piece(part.blob_key, part.size_bytes) for part in parts]
        await context.blobs.join(blob_key + SUFFIX, pieces)
        return blob_key + SUFFIX
    async with new_blob(context.blobs, blob_key) as writer:
        for part in parts:
            async for chunk in context.blobs.stream(part.blob_key):
                await writer.write(chunk)
    return blob_key


async def _delete_joined(file: File, part_keys: Sequence[str], context: ApiContext) -> None:
    """Deletes the joined blob and keeps the parts: the upload may be completed again."""
    if file.blob_key not in part_keys:
        await context.blobs.delete(file.blob_key)
