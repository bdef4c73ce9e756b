"""The published shapes (docs/openai-behaviour.md 1, 2): pydantic models for checks and for the
OpenAPI document, and `*_on_wire` functions that write them.

Duty: names, types and key order. Promise: what `*_on_wire` gives has every key, null where there is
nothing, in the order OpenAI sends; a test holds models and functions together. Not its duty: texts of
errors (`violations`). Writing by hand keeps a poll cheap: no model is built or checked on the way out.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from typing_extensions import TypeAliasType

from nightmill.api import checks
from nightmill.core.batch import ENDPOINTS, Status, Usage
from nightmill.core.batch import Batch as BatchState
from nightmill.core.file import UPLOAD_PURPOSES, File, UploadStatus
from nightmill.core.file import Upload as UploadState
from nightmill.core.file import UploadPart as UploadPartState

MIN_EXPIRES_AFTER_S = 3_600
MAX_EXPIRES_AFTER_S = 2_592_000
METADATA_PAIRS = 16
METADATA_KEY_LENGTH = 64
METADATA_VALUE_LENGTH = 512

Stamp = Annotated[int, WithJsonSchema({"type": "integer", "format": "unixtime"})]
PurposeText = Annotated[
    str,
    AfterValidator(checks.one_of("purposes", UPLOAD_PURPOSES)),
    WithJsonSchema({"type": "string", "enum": [str(purpose) for purpose in UPLOAD_PURPOSES]}),
]
Metadata = TypeAliasType(
    "Metadata",
    Annotated[
        dict[
            Annotated[str, StringConstraints(max_length=METADATA_KEY_LENGTH)],
            Annotated[str, StringConstraints(max_length=METADATA_VALUE_LENGTH)],
        ]
        | None,
        AfterValidator(checks.at_most_pairs(METADATA_PAIRS)),
        WithJsonSchema(
            {
                "anyOf": [
                    {
                        "type": "object",
                        "description": "Up to 16 pairs of texts; keys up to 64 characters, values up to 512.",
                        "additionalProperties": {"type": "string"},
                    },
                    {"type": "null"},
                ]
            }
        ),
    ],
)


class WireModel(BaseModel):
    """A published shape. Strict: `"1"` is no integer, `1` no string. Unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, use_attribute_docstrings=True)


# --- errors ------------------------------------------------------------------------------------------


class Error(WireModel):
    """What went wrong, and where."""

    message: str
    """For people."""
    type: str
    """The kind of error."""
    param: str | None
    """The field at fault."""
    code: str | None
    """For programs."""


class ErrorResponse(WireModel):
    """The body of every answer that is not a success."""

    error: Error


# --- files -------------------------------------------------------------------------------------------


class FileExpirationAfter(WireModel):
    """When the file expires. Files with purpose `batch` expire after 30 days unless this says otherwise."""

    anchor: Literal["created_at"]
    """What `seconds` counts from."""
    seconds: Annotated[int, Field(ge=MIN_EXPIRES_AFTER_S, le=MAX_EXPIRES_AFTER_S)]
    """From one hour to thirty days."""


class CreateFileRequest(WireModel):
    """A file and what it is for. Described here; the bytes are streamed and never validated as a model."""

    file: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    """The bytes."""
    purpose: PurposeText
    """What the file is for."""
    expires_after: FileExpirationAfter | None = None


class OpenAIFile(WireModel):
    """A file that was uploaded or made by a batch."""

    id: str
    object: Literal["file"]
    """Always `file`."""
    bytes: int
    """Its size."""
    created_at: Stamp
    """When it was made, in Unix seconds."""
    expires_at: Stamp | None = None
    """When it will be deleted, in Unix seconds."""
    filename: str
    """Its name; data only."""
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
    """What it is for."""
    status: Annotated[Literal["uploaded", "processed", "error"], Field(deprecated=True)]
    """Always `processed`: a file is ready once it is there."""
    status_details: Annotated[str | None, Field(deprecated=True)] = None
    """Always null."""


class ListFilesResponse(WireModel):
    """A page of files. The ids of an empty page are empty strings."""

    object: Literal["list"]
    """Always `list`."""
    data: list[OpenAIFile]
    first_id: str
    last_id: str
    has_more: bool


class DeleteFileResponse(WireModel):
    """A file that is no longer there."""

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
    """The name of the file it becomes."""
    purpose: PurposeText
    """What the file is for."""
    bytes: Annotated[int, Field(ge=0)]
    """The size of the whole file."""
    mime_type: str
    """Its media type. Kept and not checked."""
    expires_after: FileExpirationAfter | None = None


class AddUploadPartRequest(WireModel):
    """One part. Described here; the bytes are streamed and never validated as a model."""

    data: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    """The bytes of this part."""


class CompleteUploadRequest(WireModel):
    """The parts in the order in which they make up the file."""

    part_ids: list[str]
    """Ids of parts of this upload, in order."""
    md5: str | None = None
    """MD5 of the whole file in hex, if it is to be compared."""


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
    """The name of the file it becomes."""
    purpose: str
    """What the file is for."""
    status: Literal["pending", "completed", "cancelled", "expired"]
    """Where it stands."""
    expires_at: Stamp
    """Until when it takes parts, in Unix seconds."""
    file: OpenAIFile | None = None
    """The file it has become; the key is absent before."""


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
    """Args:
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


# --- batches -----------------------------------------------------------------------------------------


class BatchFileExpirationAfter(WireModel):
    """When the output and error files expire, counted from when they are made."""

    anchor: Literal["created_at"]
    """What `seconds` counts from: the making of the file, not of the batch."""
    seconds: Annotated[int, Field(ge=MIN_EXPIRES_AFTER_S, le=MAX_EXPIRES_AFTER_S)]
    """From one hour to thirty days."""


class CreateBatchRequest(WireModel):
    """What to do with an uploaded file of request lines."""

    input_file_id: Annotated[str, AfterValidator(checks.id_that_begins_with("file"))]
    """A file with purpose `batch`."""
    endpoint: Annotated[
        str,
        AfterValidator(checks.one_of("endpoints", ENDPOINTS)),
        WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)}),
    ]
    """The endpoint of every request line."""
    completion_window: Annotated[
        str,
        AfterValidator(checks.one_of("completion_windows", ("24h",))),
        WithJsonSchema({"type": "string", "enum": ["24h"]}),
    ]
    """The time in which the batch is to be done. The server's settings may allow others than `24h`."""
    metadata: Metadata = None
    output_expires_after: BatchFileExpirationAfter | None = None


class BatchError(WireModel):
    """Why a batch failed validation."""

    code: str | None = None
    """For programs."""
    message: str | None = None
    """For people."""
    param: str | None = None
    """The field at fault."""
    line: int | None = None
    """The physical line of the input file, counted from 1."""


class BatchErrors(WireModel):
    """Why a batch failed validation, one entry for each bad line."""

    object: str | None = None
    """Always `list`."""
    data: list[BatchError] | None = None


class BatchRequestCounts(WireModel):
    """How far a batch is."""

    total: int
    """Request lines in the batch."""
    completed: int
    """Lines answered with success."""
    failed: int
    """Lines answered with an error."""


class BatchUsageInputTokensDetails(WireModel):
    """Where input tokens came from."""

    cached_tokens: int
    """Tokens found in the upstream's cache."""


class BatchUsageOutputTokensDetails(WireModel):
    """What output tokens were for."""

    reasoning_tokens: int
    """Tokens spent on reasoning."""


class BatchUsage(WireModel):
    """Tokens over all answered lines; zeros until the batch has ended."""

    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    total_tokens: int
    """Both together."""
    input_tokens_details: BatchUsageInputTokensDetails
    output_tokens_details: BatchUsageOutputTokensDetails


class Batch(WireModel):
    """A file of request lines on its way to being answered."""

    id: str
    object: Literal["batch"]
    """Always `batch`."""
    endpoint: str
    """The endpoint of every request line."""
    model: str | None = None
    """The model of its lines, once the file has been read."""
    errors: BatchErrors | None = None
    """Why it failed validation."""
    input_file_id: str
    """The file of request lines."""
    completion_window: str
    """The time in which it is to be done."""
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    """Where it stands."""
    output_file_id: str | None = None
    """The file with the successful answers, when it has ended and there are any."""
    error_file_id: str | None = None
    """The file with all other lines, when it has ended and there are any."""
    created_at: Stamp
    """When it was created, in Unix seconds."""
    in_progress_at: Stamp | None = None
    """When its lines began to be sent."""
    expires_at: Stamp | None = None
    """When its completion window is over."""
    finalizing_at: Stamp | None = None
    """When its files began to be written."""
    completed_at: Stamp | None = None
    """When it was completed."""
    failed_at: Stamp | None = None
    """When it failed validation."""
    expired_at: Stamp | None = None
    """When it was given up because its window was over."""
    cancelling_at: Stamp | None = None
    """When it was asked to stop."""
    cancelled_at: Stamp | None = None
    """When it had stopped."""
    request_counts: BatchRequestCounts | None = None
    usage: BatchUsage | None = None
    metadata: Metadata = None


class ListBatchesResponse(WireModel):
    """A page of batches, newest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


_NO_USAGE = Usage()


def batch_on_wire(batch: BatchState) -> dict[str, Any]:
    """Usage stays at zero until the end, as OpenAI's does (docs/openai-behaviour.md 2.1)."""
    usage = batch.tally.usage if batch.status.is_terminal else _NO_USAGE
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": _errors_on_wire(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": _counts_on_wire(batch),
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
        "metadata": batch.metadata,
    }


def _errors_on_wire(batch: BatchState) -> dict[str, Any] | None:
    if not batch.errors:
        return None
    entries = [
        {"code": entry.code, "message": entry.message, "param": entry.param, "line": entry.line}
        for entry in batch.errors
    ]
    return {"object": "list", "data": entries}


def _counts_on_wire(batch: BatchState) -> dict[str, int]:
    if batch.status in (Status.VALIDATING, Status.FAILED):
        return {"total": 0, "completed": 0, "failed": 0}
    return {"total": batch.total, "completed": batch.tally.completed, "failed": batch.tally.failed}


# --- models ------------------------------------------------------------------------------------------


class Model(WireModel):
    """A model the upstream offers."""

    id: str
    created: Stamp
    """When it was made, in Unix seconds; 0 where the upstream does not say."""
    object: Literal["model"]
    """Always `model`."""
    owned_by: str
    """Who offers it."""


class ListModelsResponse(WireModel):
    """Every model the upstream offers."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Model]
