"""The files service (docs/openai-behaviour.md 1.2).

Upload, list, read and delete files. A file is listed only when its bytes are durable. Blobs without a row
lie under `files/<file id>`, where the orphan sweep finds them. Maintenance deletes the bytes of deleted files
(`store.blob_references.unused`).
"""

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from nightmill.api.admission import (
    check_batch_input,
    expires_after_s,
    expires_at,
    limit_bytes,
    limits_of,
    purpose_of,
)
from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.body import idempotency_of
from nightmill.api.context import ApiContext, Context
from nightmill.api.download import Download, read_range, wanted_range
from nightmill.api.envelope import JsonResponse, echo
from nightmill.api.file_wire import (
    CreateFileRequest,
    DeleteFileResponse,
    ListFilesResponse,
    OpenAIFile,
    file_on_wire,
)
from nightmill.api.middleware import METHOD_AS_SENT
from nightmill.api.multipart import Form, FormPlan, receive_form, too_large
from nightmill.api.openapi import CONFLICT, takes_multipart
from nightmill.api.upload_limiter import Limiter
from nightmill.api.violations import missing_parameter
from nightmill.api.wire import is_id_shaped
from nightmill.core.audit import Actor, AuditAction
from nightmill.core.file import NOT_DOWNLOADABLE, File, Purpose
from nightmill.errors import NotFoundError, RequestError, StorageFullError
from nightmill.failpoints import failpoint
from nightmill.ids import FileId, ProjectId, new_file_id
from nightmill.settings import LimitSettings
from nightmill.store import Idempotency

MAX_LIMIT = 10_000

NOTHING_STORED = (RequestError, StorageFullError)
"""Errors after which the store has no row, so that the blob can be deleted. After other errors the commit may
have succeeded with its response lost: then the orphan sweep decides whether a row references the blob."""

router = APIRouter(tags=["Files"])


def blob_key_of(file_id: FileId) -> str:
    return f"files/{file_id}"


@router.post(
    "/files",
    operation_id="createFile",
    summary="Upload a file.",
    response_model=OpenAIFile,
    openapi_extra=takes_multipart(CreateFileRequest),
    responses=CONFLICT,
)
async def create_file(
    request: Request, context: Context, project: CurrentProject, by: CurrentActor, limiter: Limiter
) -> Response:
    file_id = new_file_id(context.random(16))
    limits = await limits_of(context, project)
    plan = FormPlan(
        file_field="file",
        open_writer=lambda: context.blobs.open_writer(blob_key_of(file_id)),
        limit_bytes=lambda texts: limit_bytes(texts, limits),
        idle_s=context.settings.api.upload_idle_s,
        hash_content="idempotency-key" in request.headers,
    )
    with limiter.slot():
        async with receive_form(request, plan) as form:
            file = _file_from(form, file_id, project, limits, created_at=int(context.clock()))
            idempotency = idempotency_of(request, fingerprint=_fingerprint(form))
            await form.commit()
    return JsonResponse(file_on_wire(await _add(context, file, idempotency, by)))


@router.get(
    "/files",
    operation_id="listFiles",
    summary="List files.",
    response_model=ListFilesResponse,
)
async def list_files(
    context: Context,
    project: CurrentProject,
    purpose: Annotated[str | None, Query(description="Only files with this purpose.")] = None,
    limit: Annotated[
        int, Query(ge=1, le=MAX_LIMIT, description="The largest number of files to return.")
    ] = MAX_LIMIT,
    order: Annotated[Literal["asc", "desc"], Query(description="By `created_at`.")] = "desc",
    after: Annotated[str | None, Query(description="The id of the last file of the previous page.")] = None,
) -> Response:
    if after and not is_id_shaped(after):
        raise NotFoundError(f"No such File object: {echo(after)}", param="after")
    files: tuple[File, ...] = ()
    has_more = False
    if purpose is None or purpose in frozenset(Purpose):
        page = await context.store.files.list(
            project, purpose=purpose, after=FileId(after) if after else None, limit=limit, order=order
        )
        files, has_more = page.items, page.has_more
    return JsonResponse(
        {
            "object": "list",
            "data": [file_on_wire(file) for file in files],
            "has_more": has_more,
            # The published type is a string, also for an empty page (docs/openai-behaviour.md 10.1).
            "first_id": files[0].id if files else "",
            "last_id": files[-1].id if files else "",
        }
    )


@router.get(
    "/files/{file_id}",
    operation_id="retrieveFile",
    summary="Read about a file.",
    response_model=OpenAIFile,
)
async def retrieve_file(file_id: str, context: Context, project: CurrentProject) -> Response:
    return JsonResponse(file_on_wire(await require_file(file_id, context, project)))


@router.delete(
    "/files/{file_id}",
    operation_id="deleteFile",
    summary="Delete a file.",
    response_model=DeleteFileResponse,
    responses=CONFLICT,
)
async def delete_file(file_id: str, context: Context, project: CurrentProject, by: CurrentActor) -> Response:
    if not is_id_shaped(file_id) or not await context.store.files.delete(project, FileId(file_id), by=by):
        raise _not_found(file_id)
    return JsonResponse({"object": "file", "deleted": True, "id": file_id})


@router.get(
    "/files/{file_id}/content",
    operation_id="downloadFile",
    summary="Download a file.",
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            }
        }
    },
)
async def download_file(
    file_id: str, request: Request, context: Context, project: CurrentProject, by: CurrentActor
) -> Response:
    file = await require_file(file_id, context, project)
    if file.purpose in NOT_DOWNLOADABLE:
        raise RequestError(f"Not allowed to download files of purpose: {file.purpose}")
    if context.settings.audit.downloads:
        await context.store.audit.add(by, AuditAction.FILE_DOWNLOADED, file.id, project_id=project)
    blobs = context.settings.blobs
    if blobs.presigned_downloads:
        url = await context.blobs.signed_url(file.blob_key, ttl_s=blobs.presigned_ttl_s)
        if url is not None:
            return RedirectResponse(url, 302, {"cache-control": "no-store"})
    if request.scope[METHOD_AS_SENT] == "HEAD":
        return Download(file, context.blobs.stream(file.blob_key), says_ranges=True)
    wanted = wanted_range(request.headers.get("range"), request.headers.get("if-range"), file)
    if wanted is not None:
        return Download(file, read_range(context.blobs, file.blob_key, wanted), wanted=wanted)
    return Download(file, context.blobs.stream(file.blob_key))


async def require_file(file_id: str, context: ApiContext, project: ProjectId) -> File:
    """Raises NotFoundError when the project has no such file."""
    file = await context.store.files.get(project, FileId(file_id)) if is_id_shaped(file_id) else None
    if file is None:
        raise _not_found(file_id)
    return file


def _not_found(file_id: str) -> NotFoundError:
    return NotFoundError(f"No such File object: {echo(file_id)}", param="id")


def _file_from(
    form: Form, file_id: FileId, project: ProjectId, limits: LimitSettings, *, created_at: int
) -> File:
    if not form.has_file:
        raise missing_parameter("file")
    if "purpose" not in form.texts:
        raise missing_parameter("purpose")
    purpose = purpose_of(form.texts["purpose"])
    seconds = expires_after_s(form.texts)
    if form.size_bytes > limit_bytes(form.texts, limits):
        raise too_large()
    if purpose is Purpose.BATCH:
        check_batch_input(form.beginning, size_bytes=form.size_bytes)
    return File(
        id=file_id,
        project_id=project,
        purpose=purpose,
        filename=form.filename or "",
        size_bytes=form.size_bytes,
        created_at=created_at,
        expires_at=expires_at(purpose, created_at=created_at, expires_after_s=seconds, limits=limits),
        blob_key=blob_key_of(file_id),
    )


async def _add(context: ApiContext, file: File, idempotency: Idempotency | None, by: Actor) -> File:
    """Inserts the row of a committed blob. A crash before the insert leaves an orphaned blob."""
    failpoint("api.before_file")
    try:
        stored = await context.store.files.add(file, idempotency, limits=context.settings.quota.limits, by=by)
    except NOTHING_STORED:
        await context.blobs.delete(file.blob_key)
        raise
    failpoint("api.file_added")
    if stored.id != file.id:
        await context.blobs.delete(file.blob_key)
    return stored


def _fingerprint(form: Form) -> str:
    fields = [form.filename or "", *(f"{name}={text}" for name, text in sorted(form.texts.items()))]
    digest = hashlib.sha256("\0".join(fields).encode("utf-8", "surrogatepass")).hexdigest()
    return f"file {digest} {form.size_bytes} {form.content_digest}"
