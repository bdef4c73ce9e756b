"""Carries out the repairs of a check. The caller holds the data folder's lock.

Rows are changed first, in one transaction, then files. If the process dies in between, the next repair finds
the rest. What is wrong is decided by `audit_files` and `audit_batches`.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import assert_never

from nightmill.admin.disk import UNFINISHED
from nightmill.admin.findings import (
    CountBatches,
    DeleteOrphan,
    DeleteSegments,
    DiscardSlices,
    Finding,
    ForgetIdempotencyKey,
    ForgetUploadPart,
    MarkFileDeleted,
    PinParts,
    RebuildIndex,
    RecountBatch,
    Repair,
)
from nightmill.admin.line_index import indexed_again
from nightmill.blobs import make_folders, reported, sync_folder
from nightmill.ids import BatchId
from nightmill.store.row_repair import RowRepair, repairing


def repair(store_url: str, root: Path, findings: Sequence[Finding]) -> None:
    repairs = [finding.repair for finding in findings if finding.repair is not None]
    with reported("the blob folder"):
        for step in repairs:
            if isinstance(step, RebuildIndex):
                _write_index(root, step)
        with repairing(store_url) as rows:
            for step in repairs:
                _repair_row(rows, step)
            for batch_id in _counted_again(repairs):
                rows.recount(batch_id)
            if any(isinstance(step, CountBatches) for step in repairs):
                rows.count_batches()
        for step in repairs:
            if isinstance(step, DeleteOrphan):
                _remove(root, step.path)


def _repair_row(rows: RowRepair, step: Repair) -> None:
    match step:
        case MarkFileDeleted(file):
            rows.delete_file(file.id)
        case ForgetUploadPart(part):
            rows.delete_part(part.id)
        case ForgetIdempotencyKey(row):
            rows.delete_idempotency(row)
        case DeleteSegments(batch_id):
            rows.delete_segments(batch_id)
        case DiscardSlices(batch_id):
            rows.delete_slices(batch_id)
        case PinParts(segment, pinned, tally):
            rows.pin(segment, pinned, tally)
        case CountBatches():
            return  # done last, when no row changes any more
        case RecountBatch() | RebuildIndex() | DeleteOrphan():
            return  # done after the segments, and on disk
        case _:
            assert_never(step)


def _counted_again(repairs: Sequence[Repair]) -> list[BatchId]:
    """Batches whose segments were changed, and batches whose own tally was wrong."""
    batch_ids = [step.segment.batch_id for step in repairs if isinstance(step, PinParts)]
    batch_ids += [step.batch_id for step in repairs if isinstance(step, RecountBatch)]
    return list(dict.fromkeys(batch_ids))


def _write_index(root: Path, step: RebuildIndex) -> None:
    index = indexed_again(step.batch, root)
    if index is None:
        return  # the input changed since the check; the next check reports it
    target = root / step.index_blob_key
    unfinished = root / UNFINISHED / f"index-{step.batch.id}"
    make_folders(unfinished.parent)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    make_folders(target.parent)
    unfinished.rename(target)
    sync_folder(target.parent)


def _remove(root: Path, key: str) -> None:
    path = root / key
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()  # deletes only an empty folder, which is created again when needed
