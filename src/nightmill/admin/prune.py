"""Removes what is old: files of batches, rows of ended batches, and rows of deleted files.

The rows go first or last as `store.pruning` says. Bytes are deleted here only where no server works; a server
deletes them itself at its next sweep.
"""

from dataclasses import dataclass

from nightmill.blobs import Blobs
from nightmill.core.audit import Actor
from nightmill.parts import Parts
from nightmill.roles.maintenance import delete_unused_bytes
from nightmill.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was removed.

    Attributes:
        rows: of deleted files and ended uploads.
    """

    files: int
    batches: int
    rows: int


async def prune(
    store: Store,
    storage: tuple[Blobs, Parts] | None,
    *,
    kept_s: float,
    project_id: str | None,
    by: Actor,
) -> Pruned:
    """Removes what is older than `kept_s` seconds.

    Args:
        storage: where the bytes are, if they are to be deleted here.
        project_id: of this project only; rows of deleted files stay then.
        by: for the audit log.
    """
    files = batches = rows = 0
    while count := await store.pruning.delete_files(kept_s=kept_s, project_id=project_id, by=by):
        files += count
    if storage is not None:
        await delete_unused_bytes(store, *storage)
    while count := await store.pruning.remove_batches(kept_s=kept_s, project_id=project_id, by=by):
        batches += count
    if project_id is None:
        while count := await store.pruning.remove_tombstones(kept_s=kept_s):
            rows += count
    return Pruned(files=files, batches=batches, rows=rows)
