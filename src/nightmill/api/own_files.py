"""Files under `/nightmill/v1`: which batches use them, and their lines page by page.

A page of lines is read at its place in the file, however long the file is. The published routes of files are
in `files`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from nightmill.api.auth import CurrentActor, CurrentProject
from nightmill.api.blob_reads import text_on_wire
from nightmill.api.context import Context
from nightmill.api.envelope import JsonResponse, echo, list_document
from nightmill.api.file_lines import LinePage, page_at, page_before
from nightmill.api.file_wire import file_on_wire
from nightmill.api.files import require_file
from nightmill.api.line_map import LineMapsOfApp
from nightmill.api.wire import is_id_shaped
from nightmill.core.audit import AuditAction
from nightmill.core.file import OF_LINES, File
from nightmill.core.json_text import BOM, members, utf8_string
from nightmill.errors import NotFoundError, RequestError
from nightmill.ids import FileId
from nightmill.store.file_uses import FileUse

_MOST_USES: Final = 5
_MOST_TEXT_BYTES: Final = 16 << 20
_COUNT_S: Final = 0.2

router = APIRouter(prefix="/nightmill/v1/files", include_in_schema=False)


@router.get("")
async def list_files(
    context: Context,
    project: CurrentProject,
    purpose: Annotated[str | None, Query(description="Only files with this purpose.")] = None,
    after: Annotated[str | None, Query(description="The id of the last file of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JsonResponse:
    """Files and the batches that use them, newest first."""
    if after and not is_id_shaped(after):
        raise NotFoundError(f"No such File object: {echo(after)}", param="after")
    page = await context.store.files.list(
        project, purpose=purpose, after=FileId(after) if after else None, limit=limit
    )
    uses = await context.store.file_uses.of(project, page.items, most=_MOST_USES + 1)
    data = [_on_wire(file, uses[file.id]) for file in page.items]
    return JsonResponse(list_document(data, has_more=page.has_more))


@router.get("/{file_id}")
async def retrieve_file(file_id: str, context: Context, project: CurrentProject) -> JsonResponse:
    """A file and the batches that use it."""
    file = await require_file(file_id, context, project)
    uses = await context.store.file_uses.of(project, [file], most=_MOST_USES + 1)
    return JsonResponse(_on_wire(file, uses[file.id]))


@router.get("/{file_id}/lines")
async def list_lines(
    file_id: str,
    context: Context,
    project: CurrentProject,
    by: CurrentActor,
    maps: LineMapsOfApp,
    offset: Annotated[int | None, Query(ge=0, description="From the line that has this byte.")] = None,
    before: Annotated[int | None, Query(ge=0, description="Up to the line that begins here.")] = None,
    line: Annotated[int | None, Query(ge=1, description="From the line with this number.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    max_bytes: Annotated[int, Query(ge=0, le=_MOST_TEXT_BYTES, description="Of each line.")] = 4096,
) -> JsonResponse:
    """Lines of a file of lines, fewer than `limit` where they are long. Start with one parameter at most."""
    if [offset, before, line].count(None) < 2:
        raise RequestError("Begin a page by one of 'offset', 'before' and 'line'.", param="offset")
    file = await require_file(file_id, context, project)
    if file.purpose not in OF_LINES:
        raise RequestError(f"A file of purpose '{file.purpose}' has no lines to show.", param="file_id")
    if context.settings.audit.downloads:
        await context.store.audit.add(by, AuditAction.FILE_DOWNLOADED, file.id, project_id=project)
    try:
        if line is not None:
            place = await maps.at_number(file.blob_key, line)
            if place is None and line > 1:
                raise NotFoundError(f"The file '{file.id}' has no line {line}.", param="line")
            offset = 0 if place is None or line == 1 else place.offset
        if before is not None:
            page = await page_before(context.blobs, file, before, limit=limit, most_bytes=max_bytes)
        else:
            page = await page_at(context.blobs, file, offset or 0, limit=limit, most_bytes=max_bytes)
        first = await maps.number_at(file.blob_key, page.start, within_s=_COUNT_S)
    except FileNotFoundError:
        raise NotFoundError(f"No such File object: {file.id}", param="file_id") from None
    return JsonResponse(_page_on_wire(file, page, first, max_bytes))


def _on_wire(file: File, uses: Sequence[FileUse]) -> dict[str, Any]:
    return {
        **file_on_wire(file),
        "object": "nightmill.file",
        "batches": [{"id": use.batch_id, "status": use.status, "as": use.role} for use in uses[:_MOST_USES]],
        "has_more_batches": len(uses) > _MOST_USES,
    }


def _page_on_wire(file: File, page: LinePage, first: int | None, most_bytes: int) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for at, line in enumerate(page.lines):
        text = line.text if line.offset else line.text.removeprefix(BOM)
        shown = text_on_wire(text, size_bytes=line.size_bytes, most_bytes=most_bytes)
        data.append(
            {
                "line": None if first is None else first + at,
                "offset": line.offset,
                "custom_id": _custom_id(line.text),
                **shown,
            }
        )
    return {
        "object": "list",
        "file_id": file.id,
        "size_bytes": file.size_bytes,
        "data": data,
        "start": page.start,
        "end": page.end,
        "has_more": page.end < file.size_bytes,
    }


def _custom_id(text: bytes) -> str | None:
    """None for a line that has none, or whose beginning alone was read."""
    text = text.removeprefix(BOM).strip()
    if not text.startswith(b"{"):
        return None
    try:
        found = members(text, "custom_id").get("custom_id", b"")
        return utf8_string(found) if found.startswith(b'"') else None
    except ValueError:
        return None
