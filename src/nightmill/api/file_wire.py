"""The published shapes of files and uploads (docs/openai-behaviour.md 1.2, 1.3); see `wire`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from nightmill.api.wire import MAX_EXPIRES_AFTER_S, MIN_EXPIRES_AFTER_S, Stamp, WireModel, one_of
from nightmill.core.file import UPLOAD_PURPOSES, File, UploadStatus
from nightmill.core.file import Upload as UploadState
from nightmill.core.file import UploadPart as UploadPartState

PurposeText = Annotated[
    str,
    AfterValidator(one_of("purposes", UPLOAD_PURPOSES)),
    WithJsonSchema({"type": "string", "enum": [str(purpose) for purpose in UPLOAD_PURPOSES]}),
]


# --- files -------------------------------------------------------------------------------------------


class FileExpirationAfter(WireModel):
    """When the file expires. Files with purpose `batch` expire after 30 days unless this says otherwise."""

    anchor: Literal["created_at"]
    """What `seconds` counts from."""
    seconds: Annotated[int, Field(ge=MIN_EXPIRES_AFTER_S, le=MAX_EXPIRES_AFTER_S)]
    """From one hour to thirty days."""


class CreateFileRequest(WireModel):
    """A file and its purpose. The body is streamed; this model only describes it."""

    file: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    """The bytes."""
    purpose: PurposeText
    """The purpose of the file."""
    expires_after: FileExpirationAfter | None = None


class OpenAIFile(WireModel):
    """A file from an upload or from a batch."""

    id: str
    object: Literal["file"]
    """Always `file`."""
    bytes: int
    """Its size."""
    created_at: Stamp
    """The time of its creation, in Unix seconds."""
    expires_at: Stamp | None = None
    """The time of its deletion, in Unix seconds."""
    filename: str
    """Its name."""
    purpose: Literal[
        "assistants",
        "assistants_output",
        "batch",
        "batch_output",
        "fine-tune",
        "fine-tune-results",
        "vision",
        "user_data",
        "evals",
    ]
    """Its purpose."""
    status: Annotated[Literal["uploaded", "processed", "error"], Field(deprecated=True)]
    """Always `processed`: every listed file is ready."""
    status_details: Annotated[str | None, Field(deprecated=True)] = None
    """Always null."""


class ListFilesResponse(WireModel):
    """A page of files. In an empty page, `first_id` and `last_id` are empty strings."""

    object: Literal["list"]
    """Always `list`."""
    data: list[OpenAIFile]
    first_id: str
    last_id: str
    has_more: bool


class DeleteFileResponse(WireModel):
    """A deleted file."""

    id: str
    object: Literal["file"]
    deleted: bool


def file_on_wire(file: File) -> dict[str, Any]:
    return {
        "object": "file",
        "id": file.id,
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.size_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "status": "processed",
        "status_details": None,
    }


# --- uploads -----------------------------------------------------------------------------------------


class CreateUploadRequest(WireModel):
    """A file that will arrive in parts."""

    filename: str
    """The name of the file."""
    purpose: PurposeText
    """The purpose of the file."""
    bytes: Annotated[int, Field(ge=0)]
    """The size of the whole file."""
    mime_type: str
    """Its media type. Stored without a check."""
    expires_after: FileExpirationAfter | None = None


class AddUploadPartRequest(WireModel):
    """One part. The body is streamed; this model only describes it."""

    data: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    """The bytes of this part."""


class CompleteUploadRequest(WireModel):
    """The parts in the order in which they make up the file."""

    part_ids: list[str]
    """Ids of parts of this upload, in order."""
    md5: str | None = None
    """MD5 of the whole file in hex, to check it."""


class Upload(WireModel):
    """A file that arrives in parts."""

    id: str
    object: Annotated[Literal["upload"], Field()] = "upload"
    """Always `upload`."""
    bytes: int
    """The size of the whole file."""
    created_at: Stamp
    """When it was opened, in Unix seconds."""
    filename: str
    """The name of the file."""
    purpose: str
    """The purpose of the file."""
    status: Literal["pending", "completed", "cancelled", "expired"]
    """Its status."""
    expires_at: Stamp
    """The time until which it accepts parts, in Unix seconds."""
    file: OpenAIFile | None = None
    """The file of a completed upload; absent before."""


class UploadPart(WireModel):
    """One part of an upload."""

    id: str
    object: Literal["upload.part"]
    """Always `upload.part`."""
    created_at: Stamp
    """When it was received, in Unix seconds."""
    upload_id: str
    """The upload it belongs to."""


def upload_on_wire(upload: UploadState, file: File | None = None) -> dict[str, Any]:
    """The JSON of an upload.

    Args:
        file: the file of a completed upload; without one the key is absent (docs/openai-behaviour.md 9.8).
    """
    shown: dict[str, Any] = {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": upload.created_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "expires_at": upload.expires_at,
    }
    if upload.status is UploadStatus.COMPLETED and file is not None:
        shown["file"] = file_on_wire(file)
    return shown


def upload_part_on_wire(part: UploadPartState) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": part.upload_id,
    }
