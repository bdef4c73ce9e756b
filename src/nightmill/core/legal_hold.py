"""Legal holds: objects that are kept regardless of deletion and expiry. No I/O."""

from dataclasses import dataclass
from enum import StrEnum


class HoldKind(StrEnum):
    """Kinds of objects that can be under legal hold."""

    PROJECT = "project"
    FILE = "file"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold. Neither clients nor expiry delete the objects under it.

    `subject_id` is the id of a project, file or batch.
    """

    kind: HoldKind
    subject_id: str
    reason: str | None
    created_at: int
