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
    CountAgain,
    DeleteFile,
    DropSegments,
    Finding,
    ForgetKey,
    ForgetPart,
    JoinAgain,
    Pin,
    Remove,
    Repair,
    WriteIndex,
)
from nightmill.admin.line_index import indexed_again
from nightmill.blobs import make_folders, reported, sync_folder
from nightmill.ids import BatchId
from nightmill.store.row_repair import RowRepair, repairing


def repair(store_url: str, root: Path, findings: Sequence[Finding]) -> None:
    repairs = [finding.repair for finding in findings if finding.repair is not None]
    with reported("the blob folder"):
        for one in repairs:
            if isinstance(one, WriteIndex):
                _write_index(root, one)
        with repairing(store_url) as rows:
            for one in repairs:
                _repair_row(rows, one)
            for batch_id in _counted_again(repairs):
                rows.recount(batch_id)
        for one in repairs:
            if isinstance(one, Remove):
                _remove(root, one.path)


def _repair_row(rows: RowRepair, one: Repair) -> None:
    match one:
        case DeleteFile(file):
            rows.delete_file(file.id)
        case ForgetPart(part):
            rows.delete_part(part.id)
        case ForgetKey(row):
            rows.delete_idempotency(row)
        case DropSegments(batch_id):
            rows.delete_segments(batch_id)
        case JoinAgain(batch_id):
            rows.delete_slices(batch_id)
        case Pin(segment, pinned, tally):
            rows.pin(segment, pinned, tally)
        case CountAgain() | WriteIndex() | Remove():
            return  # done after the segments, and on disk
        case _:
            assert_never(one)


def _counted_again(repairs: Sequence[Repair]) -> list[BatchId]:
    """Batches whose segments were changed, and batches whose own tally was wrong."""
    batch_ids = [one.segment.batch_id for one in repairs if isinstance(one, Pin)]
    batch_ids += [one.batch_id for one in repairs if isinstance(one, CountAgain)]
    return list(dict.fromkeys(batch_ids))


def _write_index(root: Path, one: WriteIndex) -> None:
    index = indexed_again(one.batch, root)
    if index is None:
        return  # the input changed since the check; the next check reports it
    target = root / one.index_blob_key
    unfinished = root / UNFINISHED / f"index-{one.batch.id}"
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
