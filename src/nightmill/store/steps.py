"""The steps of the schema: their order, when each may run, and which versions may work on the result.

A *before* step leaves everything in place that older versions use, so it runs while their processes work. An
*after* step may remove what older versions use, so it runs once no process of an older version is left. Among
the steps of one release the before steps come first: a rolling upgrade runs all of them, replaces the
processes, and then runs the after steps.

What a step does is in `migrations/versions`; the oldest version that may use a database is recorded by
`migrate`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """When a step may run, relative to the deploy of the release that brings the step."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Step:
    version: str
    stage: Stage


STEPS: Final = tuple(Step(version, Stage.BEFORE) for version in ("0001", "0002", "0003", "0004"))
SCHEMA_VERSION: Final = STEPS[-1].version
"""The newest step that this version of nightmill knows."""
NEEDED_VERSION: Final = max(step.version for step in STEPS if step.stage is Stage.BEFORE)
"""The oldest schema that this version of nightmill can work on."""
COMPATIBILITY_TABLE: Final = "schema_compatibility"
"""One row: `oldest`, the schema version of the oldest nightmill that may work on the database."""


def process_name(version: str = SCHEMA_VERSION) -> str:
    """The `application_name` of Postgres connections of processes that know the schema up to `version`."""
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
    """The version at which a migration of `stage` that starts at `found` ends; None runs every step.

    Raises:
        ValueError: the stage may not run yet; the message says what to run first.
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
        if step.stage is Stage.AFTER and any(later.stage is Stage.BEFORE for later in missing[number:]):
            raise ValueError(
                f"step {step.version} of an earlier release is still missing; run 'nightmill migrate --after'"
                " with that release's nightmill, then this"
            )
    return max(found, NEEDED_VERSION)


def refusal(found: str, oldest: str | None) -> str | None:
    """Why this version can't work on a schema at `found`, in one line that says what to do; None if it can.

    Args:
        oldest: the oldest version that may work on the database, as the database records it; None if there
            is no record.
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
