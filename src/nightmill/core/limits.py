"""Quotas of a project: how much it may have open and stored, and whether a request exceeds that. No I/O.

The decisions are made from counts that the store takes in the transaction that creates the object. Counting
belongs to `store`, identifying the caller to `api.auth`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from nightmill.core.batch import LineError
from nightmill.errors import QuotaError, RequestError

_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a project may have; 0 is no limit. The `open_` limits count batches that have not ended."""

    open_batches: int = 0
    open_lines: int = 0
    open_bytes: int = 0
    stored_bytes: int = 0
    enqueued_tokens: int = 0


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class ProjectRules:
    """What the operator has set for one project; None takes the value of the settings."""

    open_batches: int | None = None
    open_lines: int | None = None
    open_bytes: int | None = None
    stored_bytes: int | None = None
    enqueued_tokens: int | None = None
    input_ttl_s: int | None = None
    output_ttl_s: int | None = None

    def limits(self, defaults: Limits) -> Limits:
        """The limits of the project, with the settings' values where the operator has set none."""
        return Limits(*(_chosen(getattr(self, it.name), getattr(defaults, it.name)) for it in fields(Limits)))


@dataclass(frozen=True, slots=True)
class OpenWork:
    """How much a project has in batches that have not ended."""

    batches: int = 0
    lines: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Consumption:
    """How much of its limits a project uses. `enqueued_tokens` is by model; None: several models."""

    open: OpenWork
    stored_bytes: int
    enqueued_tokens: Mapping[str | None, int]


def estimated_tokens(size_bytes: int) -> int:
    """An estimate of the prompt tokens of an input file: one token for each four bytes.

    OpenAI's limit counts prompt tokens too. Tokens that a line may generate (`max_tokens`) are not added:
    most lines do not set that parameter, and a limit that depends on it would be hard to plan with.
    """
    return -(-size_bytes // _BYTES_PER_TOKEN)


def refusal_to_create(
    limits: Limits, opened: OpenWork, *, project_id: str, size_bytes: int
) -> RequestError | None:
    """The error if a batch of `size_bytes` exceeds the limits, alone or together with what is open."""
    if limits.open_bytes and size_bytes > limits.open_bytes:
        message = _too_large("bytes", size_bytes, limits.open_bytes, project_id)
        return RequestError(message, param="input_file_id", code="batch_too_large")
    for most, count, unit in (
        (limits.open_batches, opened.batches + 1, "batches"),
        (limits.open_bytes, opened.bytes + size_bytes, "bytes"),
        (limits.open_lines, opened.lines + 1, "requests"),
    ):
        if most and count > most:
            return QuotaError(_limit_reached(unit, most, project_id))
    return None


def refusal_to_accept(
    limits: Limits,
    opened: OpenWork,
    *,
    project_id: str,
    total: int,
    model: str | None,
    tokens: int,
    enqueued: int,
) -> LineError | None:
    """The error if a batch whose lines are counted exceeds the limits, alone or together with what is open.

    Args:
        opened: without this batch's own lines.
        tokens: of this batch, beyond the `enqueued` tokens of other batches for its model.
    """
    if limits.enqueued_tokens and tokens > limits.enqueued_tokens:
        unit = f"tokens for {model or 'several models'}"
        return LineError("batch_too_large", _too_large(unit, tokens, limits.enqueued_tokens, project_id))
    if limits.open_lines and total > limits.open_lines:
        return LineError("batch_too_large", _too_large("requests", total, limits.open_lines, project_id))
    if limits.enqueued_tokens and enqueued + tokens > limits.enqueued_tokens:
        message = (
            f"Enqueued token limit reached for {model or 'several models'} in project {project_id}. "
            f"Limit: {limits.enqueued_tokens:,} enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )
        return LineError("token_limit_exceeded", message)
    if limits.open_lines and opened.lines + total > limits.open_lines:
        return LineError("request_limit_exceeded", _limit_reached("requests", limits.open_lines, project_id))
    return None


def refusal_to_store(
    limits: Limits, *, project_id: str, stored_bytes: int, size_bytes: int
) -> RequestError | None:
    """The error if a file exceeds the limit together with the stored files."""
    if not limits.stored_bytes or stored_bytes + size_bytes <= limits.stored_bytes:
        return None
    if size_bytes > limits.stored_bytes:
        message = (
            f"This file has {size_bytes:,} bytes, and project {project_id} may store {limits.stored_bytes:,} "
            "in all. Split the file, or have the limit raised."
        )
        return RequestError(message, param="file", code="storage_limit_exceeded")
    message = (
        f"Storage limit reached in project {project_id}: this file has {size_bytes:,} bytes, and "
        f"{stored_bytes:,} of {limits.stored_bytes:,} are used. Delete files and upload it again."
    )
    return RequestError(message, param="file", code="storage_limit_exceeded")


def _limit_reached(unit: str, most: int, project_id: str) -> str:
    return (
        f"Enqueued {unit} limit reached in project {project_id}. Limit: {most:,} enqueued {unit}. "
        "Please try again once some in_progress batches have been completed."
    )


def _too_large(unit: str, size: int, most: int, project_id: str) -> str:
    """The message for a batch that no wait makes acceptable."""
    return (
        f"This batch has {size:,} {unit}, and all unfinished batches of project {project_id} together may "
        f"have {most:,}. Split the file into smaller batches, or have the limit raised."
    )


def _chosen(own: int | None, default: int) -> int:
    return default if own is None else own
