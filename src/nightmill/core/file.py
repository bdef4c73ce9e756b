"""Files and uploads as values (docs/openai-behaviour.md 1.2, 1.3). No I/O."""

from dataclasses import dataclass
from enum import StrEnum

from nightmill.ids import FileId, PartId, ProjectId, UploadId


class Purpose(StrEnum):
    """Purposes a client may upload with, in the order OpenAI lists them, and the one nightmill writes."""

    FINE_TUNE = "fine-tune"
    ASSISTANTS = "assistants"
    BATCH = "batch"
    USER_DATA = "user_data"
    VISION = "vision"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"


UPLOAD_PURPOSES = tuple(purpose for purpose in Purpose if purpose is not Purpose.BATCH_OUTPUT)
NOT_DOWNLOADABLE = frozenset({Purpose.ASSISTANTS, Purpose.USER_DATA})


@dataclass(frozen=True, slots=True)
class File:
    """A file. `filename` is data only and never part of a path; the bytes lie under `blob_key`."""

    id: FileId
    project_id: ProjectId
    purpose: Purpose
    filename: str
    size_bytes: int
    created_at: int
    expires_at: int | None
    blob_key: str


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that arrives in parts. `file_expires_after_s` is for the file it becomes."""

    id: UploadId
    project_id: ProjectId
    purpose: Purpose
    filename: str
    mime_type: str
    size_bytes: int
    created_at: int
    expires_at: int
    status: UploadStatus = UploadStatus.PENDING
    file_expires_after_s: int | None = None
    file_id: FileId | None = None


@dataclass(frozen=True, slots=True)
class UploadPart:
    id: PartId
    upload_id: UploadId
    size_bytes: int
    created_at: int
    blob_key: str
