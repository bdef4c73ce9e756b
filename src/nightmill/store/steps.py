"""The steps of the schema: their order, when each may run, and which nightmills may work on what they leave.

Promise: a *before* step leaves everything in place that older nightmills use, so it runs while they work; an
*after* step may take it away, so it runs once none of them lives. Not its duty: what a step does (see
`migrations/versions`) and where the oldest nightmill is recorded (`migrate`).

Among the steps of one release the before steps come first: whoever upgrades a fleet as it works runs them
all, replaces its processes, and then runs the rest.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """When a step may run, seen from the deploy that brings it."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Step:
    version: str
    stage: Stage


STEPS: Final = (
    Step("0001", Stage.BEFORE),
    Step("0002", Stage.BEFORE),
    Step("0003", Stage.BEFORE),
    Step("0004", Stage.BEFORE),
    Step("0005", Stage.BEFORE),
    Step("0006", Stage.AFTER),
)
SCHEMA_VERSION: Final = STEPS[-1].version
"""The newest step this nightmill knows; by it a database says which nightmills it still suits."""
NEEDED_VERSION: Final = max(step.version for step in STEPS if step.stage is Stage.BEFORE)
"""The least this nightmill can work on."""

AUDITED_SINCE: Final = "0003"
"""The step that makes the audit log."""
HOLDS_SINCE: Final = "0003"
"""Nightmills that know an older schema only delete what is held."""
PIECES_SINCE: Final = "0004"
"""Nightmills that know an older schema take the list of a blob's pieces for its bytes, and sweep them."""
COMPATIBILITY_TABLE: Final = "schema_compatibility"
"""One row: `oldest`, the schema version of the oldest nightmill that may work here. Step 0003 makes it."""


def process_name(version: str = SCHEMA_VERSION) -> str:
    """What the connections of nightmills that know the schema up to `version` are called in Postgres."""
    return f"nightmill schema {version}"


def oldest_on(version: str) -> str:
    """The schema version of the oldest nightmill that may work on a database at `version`."""
    oldest = needed = STEPS[0].version
    for step in STEPS:
        if step.version > version:
            break
        if step.stage is Stage.BEFORE:
            needed = step.version
        else:
            oldest = needed
    return oldest


def next_stop(found: str, stage: Stage | None) -> str:
    """Where a migration of `stage` ends that begins at `found`; None runs every step.

    Raises:
        ValueError: the stage's turn has not come; the message says what to run first.
    """
    missing = [step for step in STEPS if step.version > found]
    if stage is Stage.AFTER and found < NEEDED_VERSION:
        raise ValueError(
            f"the store's schema is {found}, so the new nightmill can't be at work yet;"
            " run 'nightmill migrate --before', replace every process, then this"
        )
    if stage is not Stage.BEFORE:
        return missing[-1].version if missing else found
    for number, step in enumerate(missing):
        if step.stage is Stage.AFTER and any(it.stage is Stage.BEFORE for it in missing[number:]):
            raise ValueError(
                f"step {step.version} of an earlier release is still missing; run 'nightmill migrate --after'"
                " with that release's nightmill, then this"
            )
    return max(found, NEEDED_VERSION)


def refusal(found: str, oldest: str | None) -> str | None:
    """Why this nightmill can't work on a schema at `found`, in one line that says what to do.

    Args:
        oldest: what the database says of the oldest nightmill that may work on it; None when it says nothing.
    """
    if found < NEEDED_VERSION:
        return (
            f"the store's schema is {found} and this nightmill needs {NEEDED_VERSION};"
            " run 'nightmill migrate --before' once, with this nightmill"
        )
    if found > SCHEMA_VERSION and (oldest is None or oldest > SCHEMA_VERSION):
        return (
            f"the store's schema {found} is newer than this nightmill knows ({SCHEMA_VERSION});"
            " start the nightmill that migrated it, or restore a backup"
        )
    return None
