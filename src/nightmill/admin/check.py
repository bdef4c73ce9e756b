"""Whether the data folder holds what its database says, and making it so.

Promise: a check may run beside a server and takes nobody's turn: it reads a copy of the database, and nothing
that the copy names is deleted meanwhile. Mending needs the folder to itself. Not its duty: the bytes of files
beyond their length (no digest of them is kept).
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from nightmill.admin.audit_batches import audit_batches, audit_lines
from nightmill.admin.audit_files import audit_files, audit_strays
from nightmill.admin.disk import blob_root
from nightmill.admin.findings import Finding, Kind
from nightmill.admin.hold import holding
from nightmill.admin.repair import mend
from nightmill.store.inventory import Inventory
from nightmill.store.mending import mending
from nightmill.store.snapshot import copy_database, database_file, reading

_STRAY_AFTER_S = 3_600.0
_MOST_ROUNDS = 3
"""One mend may bring another: bytes of a row that was forgotten are a stray."""


class Depth(Enum):
    """How much is read: rows, sizes and the parts of unfinished batches; or every line of every file too."""

    USUAL = "usual"
    DEEP = "deep"


@dataclass(frozen=True, slots=True)
class Checked:
    """`found` before anything was mended; `left` is what is still wrong."""

    found: tuple[Finding, ...]
    left: tuple[Finding, ...] = field(default=())


def check(
    folder: Path, store_url: str, *, depth: Depth = Depth.USUAL, clock: Callable[[], float] = time.time
) -> Checked:
    """Beside a server or without one. Bytes that nothing names count once they are an hour old.

    Raises:
        SetupError: there is no data folder or no database in it.
    """
    found = _audited(folder, store_url, depth, stray_before=clock() - _STRAY_AFTER_S)
    return Checked(found, found)


def check_and_mend(folder: Path, store_url: str, *, depth: Depth = Depth.USUAL) -> Checked:
    """Checks and repairs. The caller holds the folder's lock, so no other process is at work there: blobs
    that no row references are orphaned whatever their age.
    """
    with mending(store_url) as mender:
        mender.take_back_leases()
    found: dict[Finding, None] = {}
    for _ in range(_MOST_ROUNDS):
        left = _audited(folder, store_url, depth, stray_before=float("inf"))
        found |= dict.fromkeys(left)
        if not any(finding.mend for finding in left):
            break
        mend(store_url, blob_root(folder), left)
    else:
        left = _audited(folder, store_url, depth, stray_before=float("inf"))
    return Checked(tuple(found), left)


def _audited(folder: Path, store_url: str, depth: Depth, *, stray_before: float) -> tuple[Finding, ...]:
    database_file(store_url)
    with holding(folder), tempfile.TemporaryDirectory(prefix="nightmill-check-") as place:
        copy = Path(place) / "nightmill.sqlite"
        copy_database(store_url, copy)
        with reading(copy) as inventory:
            broken = _database_findings(inventory, store_url)
            if broken:
                return tuple(broken)  # what such a database says is not worth comparing
            root = blob_root(folder)
            findings = [
                *audit_files(inventory, root),
                *audit_batches(inventory, root),
                *audit_strays(inventory, root, before=stray_before),
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
    if not found and (reason := inventory.misfit()) is not None:
        found.append(Finding(Kind.SCHEMA, subject, reason))
    return found
