"""Checks that the database and the files of a data folder agree, and repairs what can be repaired.

A check may run beside a server and does not delay it: it reads a copy of the database, and no blob that the
copy references is deleted meanwhile. A repair needs the folder to itself. Of files only the size is checked:
the database has no digests.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from nightmill.admin.audit_batches import audit_batches, audit_lines
from nightmill.admin.audit_files import audit_files, audit_orphans
from nightmill.admin.delete_lock import no_deletes
from nightmill.admin.disk import blob_root
from nightmill.admin.findings import Finding, Kind
from nightmill.admin.repair import repair
from nightmill.store.inventory import Inventory
from nightmill.store.row_repair import repairing
from nightmill.store.snapshot import copy_database, database_file, reading

_ORPHAN_AFTER_S = 3_600.0
_MOST_ROUNDS = 3
"""A repair may lead to another: the blob of a deleted row is orphaned."""


class Depth(Enum):
    """USUAL reads rows, file sizes and the parts of unfinished batches; DEEP reads every line of every file
    too.
    """

    USUAL = "usual"
    DEEP = "deep"


@dataclass(frozen=True, slots=True)
class Checked:
    """`found` are the findings before any repair; `left` those that remain."""

    found: tuple[Finding, ...]
    left: tuple[Finding, ...] = field(default=())


def check(
    folder: Path, store_url: str, *, depth: Depth = Depth.USUAL, clock: Callable[[], float] = time.time
) -> Checked:
    """Checks without changing anything; a server may run. Orphaned blobs count once they are an hour old.

    Raises:
        SetupError: there is no data folder or no database in it.
    """
    found = _audited(folder, store_url, depth, orphan_before=clock() - _ORPHAN_AFTER_S)
    return Checked(found, found)


def check_and_repair(folder: Path, store_url: str, *, depth: Depth = Depth.USUAL) -> Checked:
    """Checks and repairs. The caller holds the folder's lock, so no other process is at work there: blobs
    that no row references are orphaned whatever their age.
    """
    with repairing(store_url) as rows:
        rows.release_leases()
    found: dict[Finding, None] = {}
    for _ in range(_MOST_ROUNDS):
        left = _audited(folder, store_url, depth, orphan_before=float("inf"))
        found |= dict.fromkeys(left)
        if not any(finding.repair for finding in left):
            break
        repair(store_url, blob_root(folder), left)
    else:
        left = _audited(folder, store_url, depth, orphan_before=float("inf"))
    return Checked(tuple(found), left)


def _audited(folder: Path, store_url: str, depth: Depth, *, orphan_before: float) -> tuple[Finding, ...]:
    database_file(store_url)
    with no_deletes(folder), tempfile.TemporaryDirectory(prefix="nightmill-check-") as place:
        copy = Path(place) / "nightmill.sqlite"
        copy_database(store_url, copy)
        with reading(copy) as inventory:
            broken = _database_findings(inventory, store_url)
            if broken:
                return tuple(broken)  # rows of a damaged database cannot be compared
            root = blob_root(folder)
            findings = [
                *audit_files(inventory, root),
                *audit_batches(inventory, root),
                *audit_orphans(inventory, root, before=orphan_before),
            ]
            if depth is Depth.DEEP:
                findings += audit_lines(inventory, root)
    return tuple(findings)


def _database_findings(inventory: Inventory, store_url: str) -> list[Finding]:
    subject = database_file(store_url).name
    found = [
        Finding(Kind.DATABASE, subject, f"{problem}; bring it back from a backup")
        for problem in inventory.problems()
    ]
    if not found and (reason := inventory.schema_refusal()) is not None:
        found.append(Finding(Kind.SCHEMA, subject, reason))
    return found
