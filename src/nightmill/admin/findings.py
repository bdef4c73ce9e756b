"""What a check may find, and the repair for it. Values only.

A repair never deletes data that is still in use: rows lose what the disk has lost already, counts are
computed again, lines without an answer are sent again, and only orphaned blobs are deleted. A finding that
would need more than that has no repair and needs a backup.
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
    """The kinds of findings. The values are part of the `--json` output and do not change."""

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
    BATCH_COUNTS = "batch_counts"
    ORPHAN = "stray"


@dataclass(frozen=True, slots=True)
class MarkFileDeleted:
    file: File


@dataclass(frozen=True, slots=True)
class ForgetUploadPart:
    part: UploadPart


@dataclass(frozen=True, slots=True)
class ForgetIdempotencyKey:
    row: IdempotencyRow


@dataclass(frozen=True, slots=True)
class DeleteSegments:
    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class DiscardSlices:
    """Discards the joined slices of a batch, so that they are joined again."""

    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class PinParts:
    """Replaces the pinned parts and the tally of a segment in the store."""

    segment: Segment
    pinned: tuple[PinnedPart, ...]
    tally: Tally


@dataclass(frozen=True, slots=True)
class RecountBatch:
    batch_id: BatchId


@dataclass(frozen=True, slots=True)
class CountBatches:
    """Counts all batches by status, model and so on again."""


@dataclass(frozen=True, slots=True)
class RebuildIndex:
    """Rebuilds the line index from the input file."""

    batch: Batch
    index_blob_key: str


@dataclass(frozen=True, slots=True)
class DeleteOrphan:
    """Deletes a file below the blob folder, by its path there."""

    path: str


Repair: TypeAlias = (
    MarkFileDeleted
    | ForgetUploadPart
    | ForgetIdempotencyKey
    | DeleteSegments
    | DiscardSlices
    | PinParts
    | RecountBatch
    | CountBatches
    | RebuildIndex
    | DeleteOrphan
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the database and the files. `subject` is an id or a blob key."""

    kind: Kind
    subject: str
    detail: str
    repair: Repair | None = field(default=None, compare=False)


def in_words(repair: Repair) -> str:
    """What `--repair` does about the finding, as the text after `repair:`."""
    match repair:
        case MarkFileDeleted(file):
            return f"mark {file.id} deleted"
        case ForgetUploadPart(part):
            return f"forget {part.id}, so that it is sent again"
        case ForgetIdempotencyKey():
            return "forget the key"
        case DeleteSegments():
            return "remove them"
        case DiscardSlices():
            return "join its batch anew"
        case PinParts(segment, _, tally):
            left = segment.count - tally.answered
            return f"keep {tally.answered} answers and send {left} lines again" if left else "count again"
        case RecountBatch() | CountBatches():
            return "count again"
        case RebuildIndex():
            return "make the line index from the input again"
        case DeleteOrphan():
            return "remove it"
        case _:
            assert_never(repair)
