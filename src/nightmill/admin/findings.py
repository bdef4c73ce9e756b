"""What a check may find, and what would mend it. Values only.

A mend never takes away what somebody may still want: rows lose what the disk lost already, counts become what
is there, lines without an answer are sent again, and only bytes that nothing names are removed. What would
cost more than that has no mend and needs a backup.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias, assert_never

from nightmill.core.batch import Batch, Tally
from nightmill.core.file import File, UploadPart
from nightmill.core.segment import PinnedPart, Segment
from nightmill.ids import BatchId
from nightmill.store.inventory import IdempotencyRow


class Kind(StrEnum):
    """The closed list. The names are for machines (`--json`) and stay."""

    DATABASE = "database"
    SCHEMA = "schema"
    FILE_MISSING = "file_missing"
    FILE_SIZE = "file_size"
    UPLOAD_PART = "upload_part"
    INPUT_MISSING = "input_missing"
    LINE_INDEX = "line_index"
    SEGMENTS = "segments"
    PART = "part"
    ANSWERS = "answers"
    TALLY = "tally"
    OUTPUT_LINES = "output_lines"
    LEFT_SEGMENTS = "left_segments"
    IDEMPOTENCY = "idempotency"
    SLICE = "slice"
    STRAY = "stray"


@dataclass(frozen=True, slots=True)
class DeleteFile:
    file: File


@dataclass(frozen=True, slots=True)
class ForgetPart:
    part: UploadPart


@dataclass(frozen=True, slots=True)
class ForgetKey:
    row: IdempotencyRow


@dataclass(frozen=True, slots=True)
class DropSegments:
    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class JoinAnew:
    """Forgets what was joined of a batch in slices."""

    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class Pin:
    """Replaces what the store knows of a segment's answers."""

    segment: Segment
    pinned: tuple[PinnedPart, ...]
    tally: Tally


@dataclass(frozen=True, slots=True)
class CountAgain:
    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class WriteIndex:
    """Makes the line index from the input file again."""

    batch: Batch
    index_blob_key: str


@dataclass(frozen=True, slots=True)
class Remove:
    """A file below the blobs, by its path there."""

    path: str


Mend: TypeAlias = (
    DeleteFile | ForgetPart | ForgetKey | DropSegments | JoinAnew | Pin | CountAgain | WriteIndex | Remove
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the database says. `subject` is an id or a blob key."""

    kind: Kind
    subject: str
    detail: str
    mend: Mend | None = field(default=None, compare=False)


def in_words(mend: Mend) -> str:
    """What `--repair` does, as the end of a sentence that begins with `repair:`."""
    match mend:
        case DeleteFile(file):
            return f"mark {file.id} deleted"
        case ForgetPart(part):
            return f"forget {part.id}, so that it is sent again"
        case ForgetKey():
            return "forget the key"
        case DropSegments():
            return "remove them"
        case JoinAnew():
            return "join its batch anew"
        case Pin(segment, _, tally):
            left = segment.count - tally.answered
            return f"keep {tally.answered} answers and send {left} lines again" if left else "count again"
        case CountAgain():
            return "count again"
        case WriteIndex():
            return "make the line index from the input again"
        case Remove():
            return "remove it"
        case _:
            assert_never(mend)
