"""Files and uploads as values (docs/openai-behaviour.md 1.2, 1.3). No I/O.

States of an upload:

- pending: the API creates an upload in this state and accepts parts for it.
- completed: the API moves an upload here when the client completes it; its parts have become a file.
- cancelled: the API moves an upload here when the client cancels it; its parts are deleted.
- expired: maintenance moves a pending upload here when its time has passed; its parts are deleted.
"""

from dataclasses import dataclass
from enum import StrEnum

from nightmill.ids import FileId, PartId, ProjectId, UploadId


class Purpose(StrEnum):
    """Purposes of files: those a client may upload, in the order of OpenAI's documentation, and output."""

    FINE_TUNE = "fine-tune"
    ASSISTANTS = "assistants"
    BATCH = "batch"
    USER_DATA = "user_data"
    VISION = "vision"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"


UPLOAD_PURPOSES = tuple(purpose for purpose in Purpose if purpose is not Purpose.BATCH_OUTPUT)
OF_LINES = frozenset({Purpose.BATCH, Purpose.BATCH_OUTPUT, Purpose.FINE_TUNE, Purpose.EVALS})
"""Files of JSON Lines."""
NOT_DOWNLOADABLE = frozenset({Purpose.ASSISTANTS, Purpose.USER_DATA})


@dataclass(frozen=True, slots=True)
class File:
    """A stored file. The bytes are the blob `blob_key`; `filename` is never part of a path. Times are Unix
    seconds.
    """

    id: FileId
    project_id: ProjectId
    purpose: Purpose
    filename: str
    size_bytes: int
    created_at: int
    expires_at: int | None
    blob_key: str


class UploadStatus(StrEnum):
    """The states of an upload; all but `pending` are final."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that arrives in parts. `file_expires_after_s` is the lifetime of the file that the upload
    becomes.
    """

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
    """One part of an upload, as a blob. Not to be confused with the parts that hold a worker's answers."""

    id: PartId
    upload_id: UploadId
    size_bytes: int
    created_at: int
    blob_key: str
