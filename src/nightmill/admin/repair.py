"""Carries out what a check would mend.

Promise: rows first, in one transaction, then bytes; dying in between leaves only what the next repair finds
again. Only for whoever holds the data folder's lock. Not its duty: what is wrong (`audit_files`,
`audit_batches`).
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
    JoinAnew,
    Mend,
    Pin,
    Remove,
    WriteIndex,
)
from nightmill.admin.line_index import indexed_again
from nightmill.blobs import make_folders, reported, sync_folder
from nightmill.ids import BatchId
from nightmill.store.mending import Mender, mending


def mend(store_url: str, root: Path, findings: Sequence[Finding]) -> None:
    mends = [finding.mend for finding in findings if finding.mend is not None]
    with reported("the blob folder"):
        for one in mends:
            if isinstance(one, WriteIndex):
                _write_index(root, one)
        with mending(store_url) as mender:
            for one in mends:
                _mend_row(mender, one)
            for batch_id in _counted_again(mends):
                mender.count_again(batch_id)
        for one in mends:
            if isinstance(one, Remove):
                _remove(root, one.path)


def _mend_row(mender: Mender, one: Mend) -> None:
    match one:
        case DeleteFile(file):
            mender.delete_file(file.id)
        case ForgetPart(part):
            mender.forget_part(part.id)
        case ForgetKey(row):
            mender.forget_key(row)
        case DropSegments(batch_id):
            mender.drop_segments(batch_id)
        case JoinAnew(batch_id):
            mender.drop_slices(batch_id)
        case Pin(segment, pinned, tally):
            mender.pin(segment, pinned, tally)
        case CountAgain() | WriteIndex() | Remove():
            return  # after the segments, and on disk
        case _:
            assert_never(one)


def _counted_again(mends: Sequence[Mend]) -> list[BatchId]:
    """Batches whose segments were changed, and those that counted wrong by themselves."""
    batch_ids = [one.segment.batch_id for one in mends if isinstance(one, Pin)]
    batch_ids += [one.batch_id for one in mends if isinstance(one, CountAgain)]
    return list(dict.fromkeys(batch_ids))


def _write_index(root: Path, one: WriteIndex) -> None:
    index = indexed_again(one.batch, root)
    if index is None:
        return  # the input changed since the check; the next check tells
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
        path.parent.rmdir()  # only an empty one goes; a folder of ours is made again when it is needed
