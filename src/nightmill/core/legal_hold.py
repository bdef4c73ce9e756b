"""Legal holds: what is kept regardless of deletion and expiry. No I/O."""

from dataclasses import dataclass
from enum import StrEnum


class HoldKind(StrEnum):
    """What can be under legal hold."""

    PROJECT = "project"
    FILE = "file"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody deletes what is under it. `subject_id` is a project, file or batch."""

    kind: HoldKind
    subject_id: str
    reason: str | None
    created_at: int
