"""Compares files, upload parts and idempotency keys with the disk, and finds orphaned blobs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from nightmill.admin.blob import blob_size
from nightmill.admin.disk import PARTS, UNFINISHED, is_older, keys_in, size_of
from nightmill.admin.findings import (
    DeleteOrphan,
    DiscardSlices,
    Finding,
    ForgetIdempotencyKey,
    ForgetUploadPart,
    Kind,
    MarkFileDeleted,
)
from nightmill.ids import BatchId
from nightmill.parts.record import PartName
from nightmill.store.inventory import Inventory

_AT_ONCE = 1_000


def audit_files(inventory: Inventory, root: Path) -> Iterator[Finding]:
    """Checks that every file and every part of a pending upload has its bytes."""
    inputs = {stored.batch.input_blob_key for stored in inventory.unfinished_batches()}
    for file in inventory.live_files():
        size_bytes = blob_size(root, file.blob_key)
        if size_bytes is None:
            detail = f"its {file.size_bytes} bytes are not at {file.blob_key}"
            if file.blob_key in inputs:
                detail = f"{detail}, and an unfinished batch needs them; bring them back from a backup"
                yield Finding(Kind.FILE_MISSING, file.id, detail)
            else:
                yield Finding(Kind.FILE_MISSING, file.id, detail, MarkFileDeleted(file))
        elif size_bytes != file.size_bytes:
            detail = (
                f"{file.blob_key} has {size_bytes} bytes, not {file.size_bytes}; bring it back from a backup"
            )
            yield Finding(Kind.FILE_SIZE, file.id, detail)
    for part in inventory.pending_parts():
        size_bytes = size_of(root / part.blob_key)
        if size_bytes != part.size_bytes:
            found = "gone" if size_bytes is None else f"{size_bytes} bytes long"
            detail = f"the part {part.id} of {part.size_bytes} bytes is {found}"
            yield Finding(Kind.UPLOAD_PART, part.upload_id, detail, ForgetUploadPart(part))
    for joined in inventory.joined_slices():
        for piece in filter(None, (joined.output, joined.error)):
            if size_of(root / piece.key) != piece.size_bytes:
                subject = f"{joined.slice.batch_id} slice {joined.slice.number}"
                detail = f"{piece.key} does not have its {piece.size_bytes} bytes"
                yield Finding(Kind.SLICE, subject, detail, DiscardSlices(joined.slice.batch_id))
    for row in inventory.dangling_idempotency():
        detail = f"an Idempotency-Key of project {row.project_id} names it, and it was never made"
        yield Finding(Kind.IDEMPOTENCY, row.object_id, detail, ForgetIdempotencyKey(row))


def audit_orphans(inventory: Inventory, root: Path, *, before: float) -> Iterator[Finding]:
    """Finds blobs that no row references, last written before `before`: a row for a newer blob may still
    come.
    """
    for keys in _chunked(keys_in(root, before=before)):
        named = inventory.referenced(keys)
        for key in keys:
            if key not in named:
                yield _orphan(key, "nothing names it")
    for path in _inside(root / UNFINISHED):
        if is_older(path, before=before):
            yield _orphan(f"{UNFINISHED}/{path.name}", "it was never finished")
    yield from _orphaned_parts(inventory, root, before=before)


def _orphaned_parts(inventory: Inventory, root: Path, *, before: float) -> Iterator[Finding]:
    folders = _inside(root / PARTS)
    statuses = inventory.statuses([BatchId(folder.name) for folder in folders])
    for folder in folders:
        status = statuses.get(BatchId(folder.name))
        if status is None or status.is_terminal:
            why = "no such batch is known" if status is None else f"its batch is {status}"
            known: set[int] | None = None
        else:
            why = "it is no part of a segment of its batch"
            known = {result.segment.number for result in inventory.segments(BatchId(folder.name))}
        for path in _inside(folder):
            name = PartName.of(path.name)
            is_part = known is not None and name is not None and name.number in known
            if not is_part and is_older(path, before=before):
                yield _orphan(f"{PARTS}/{folder.name}/{path.name}", why)


def _orphan(path: str, why: str) -> Finding:
    return Finding(Kind.ORPHAN, path, why, DeleteOrphan(path))


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _chunked(keys: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for key in keys:
        chunk.append(key)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
