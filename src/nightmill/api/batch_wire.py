"""The published shapes of batches (docs/openai-behaviour.md 1.1, 2); see `wire`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from nightmill.api.wire import (
    MAX_EXPIRES_AFTER_S,
    MIN_EXPIRES_AFTER_S,
    OwnModel,
    Stamp,
    WireModel,
    at_most_pairs,
    count_or_share,
    id_that_begins_with,
    one_of,
)
from nightmill.core.batch import ENDPOINTS, HIGHEST_PRIORITY, LOWEST_PRIORITY, Status, Usage
from nightmill.core.batch import Batch as BatchState
from nightmill.core.batch_options import BatchOptions, OnInvalid

METADATA_PAIRS = 16
METADATA_KEY_LENGTH = 64
METADATA_VALUE_LENGTH = 512

MOST_CANARY_LINES = 100_000
_LARGEST_EXACT = 2**53
"""JSON numbers above it are not exact for all clients."""

_NO_USAGE = Usage()
_NO_OPTIONS = BatchOptions()

Metadata = TypeAliasType(
    "Metadata",
    Annotated[
        dict[
            Annotated[str, StringConstraints(max_length=METADATA_KEY_LENGTH)],
            Annotated[str, StringConstraints(max_length=METADATA_VALUE_LENGTH)],
        ]
        | None,
        AfterValidator(at_most_pairs(METADATA_PAIRS)),
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


class BatchFileExpirationAfter(WireModel):
    """When the output and error files expire, counted from when they are made."""

    anchor: Literal["created_at"]
    """What `seconds` counts from: the creation of the file, not of the batch."""
    seconds: Annotated[int, Field(ge=MIN_EXPIRES_AFTER_S, le=MAX_EXPIRES_AFTER_S)]
    """From one hour to thirty days."""


Priority = Annotated[int, Field(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)]


class _Nightmill(OwnModel):
    """`core.batch_options.BatchOptions` on the wire, and the priority."""

    priority: Priority = 0
    on_invalid: Literal["fail", "skip"] = "fail"
    canary: Annotated[int, Field(ge=0, le=MOST_CANARY_LINES)] = 0
    canary_max_failed: Annotated[float, Field(ge=0, le=1)] = _NO_OPTIONS.canary_max_failed
    canary_pause: bool = False
    max_failures: Annotated[float | None, Field(ge=0), AfterValidator(count_or_share)] = None
    max_output_tokens: Annotated[int | None, Field(ge=1, le=_LARGEST_EXACT)] = None
    max_cost: Annotated[float | None, Field(ge=0)] = None
    record_attempts: bool = False

    def options(self) -> BatchOptions:
        return BatchOptions(
            on_invalid=OnInvalid(self.on_invalid),
            canary=self.canary,
            canary_max_failed=self.canary_max_failed,
            canary_pause=self.canary_pause,
            max_failures=self.max_failures,
            max_output_tokens=self.max_output_tokens,
            max_cost=self.max_cost,
            record_attempts=self.record_attempts,
        )


class CreateBatchRequest(WireModel):
    """A batch for an uploaded file of request lines."""

    input_file_id: Annotated[str, AfterValidator(id_that_begins_with("file"))]
    """A file with purpose `batch`."""
    endpoint: Annotated[
        str,
        AfterValidator(one_of("endpoints", ENDPOINTS)),
        WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)}),
    ]
    """The endpoint of every request line."""
    completion_window: Annotated[
        str,
        AfterValidator(one_of("completion_windows", ("24h",))),
        WithJsonSchema({"type": "string", "enum": ["24h"]}),
    ]
    """The time limit of the batch. The server's settings may allow others than `24h`."""
    metadata: Metadata = None
    output_expires_after: BatchFileExpirationAfter | None = None
    nightmill: SkipJsonSchema[_Nightmill | None] = None
    """What OpenAI does not have. Not in the published document."""

    @property
    def options(self) -> BatchOptions:
        return _NO_OPTIONS if self.nightmill is None else self.nightmill.options()


class BatchError(WireModel):
    """Why a batch failed validation."""

    code: str | None = None
    """A machine-readable code."""
    message: str | None = None
    """A readable message."""
    param: str | None = None
    """The invalid field."""
    line: int | None = None
    """The physical line of the input file, counted from 1."""


class BatchErrors(WireModel):
    """Why a batch failed validation, one entry for each bad line."""

    object: str | None = None
    """Always `list`."""
    data: list[BatchError] | None = None


class BatchRequestCounts(WireModel):
    """The progress of a batch."""

    total: int
    """Request lines in the batch."""
    completed: int
    """Lines answered with success."""
    failed: int
    """Lines answered with an error."""


class BatchUsageInputTokensDetails(WireModel):
    """Details of the input tokens."""

    cached_tokens: int
    """Tokens found in the upstream's cache."""


class BatchUsageOutputTokensDetails(WireModel):
    """Details of the output tokens."""

    reasoning_tokens: int
    """Tokens spent on reasoning."""


class BatchUsage(WireModel):
    """Token counts of all answered lines; zeros until the batch has ended."""

    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    total_tokens: int
    """The sum of both."""
    input_tokens_details: BatchUsageInputTokensDetails
    output_tokens_details: BatchUsageOutputTokensDetails


class Batch(WireModel):
    """A batch of request lines."""

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
    """Its time limit."""
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
    """Its status."""
    output_file_id: str | None = None
    """The file with the successful answers, after its end, if there are any."""
    error_file_id: str | None = None
    """The file with all other lines, after its end, if there are any."""
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
    """When it ended because its completion window was over."""
    cancelling_at: Stamp | None = None
    """When its cancellation was requested."""
    cancelled_at: Stamp | None = None
    """When it was cancelled."""
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
