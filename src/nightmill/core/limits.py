"""How much a project may have open and stored, and the decisions over it. No I/O.

A decision is made from counts that the store takes in the transaction that creates. Counting belongs to the
store, who is asking to `api.authentication`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from nightmill.core.batch import LineError
from nightmill.errors import QuotaError, RequestError

_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a project may have; 0 sets no limit. What is open belongs to batches that have not ended."""

    open_batches: int = 0
    open_lines: int = 0
    open_bytes: int = 0
    stored_bytes: int = 0
    enqueued_tokens: int = 0


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class ProjectRules:
    """What the operator has set for a project; None leaves it to the settings."""

    open_batches: int | None = None
    open_lines: int | None = None
    open_bytes: int | None = None
    stored_bytes: int | None = None
    enqueued_tokens: int | None = None
    input_ttl_s: int | None = None
    output_ttl_s: int | None = None

    def limits(self, defaults: Limits) -> Limits:
        return Limits(*(_chosen(getattr(self, it.name), getattr(defaults, it.name)) for it in fields(Limits)))


@dataclass(frozen=True, slots=True)
class Open:
    """What a project has in batches that have not ended."""

    batches: int = 0
    lines: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Consumption:
    """What of its limits a project uses. `enqueued_tokens` is by model; None: batches that name several."""

    open: Open
    stored_bytes: int
    enqueued_tokens: Mapping[str | None, int]


def estimated_tokens(size_bytes: int) -> int:
    """Prompt tokens of an input file: a token for each four bytes.

    OpenAI's limit counts prompt tokens too. What a line may generate (`max_tokens`) is not added: most lines
    don't say, and a limit that jumps with a parameter nobody tunes is of no use for planning.
    """
    return -(-size_bytes // _BYTES_PER_TOKEN)


def refusal_to_create(limits: Limits, opened: Open, *, project_id: str, size_bytes: int) -> QuotaError | None:
    """Why a batch of `size_bytes` can't be opened on top of what is open."""
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
    opened: Open,
    *,
    project_id: str,
    total: int,
    model: str | None,
    tokens: int,
    enqueued: int,
) -> LineError | None:
    """Why a batch whose lines are known can't go on.

    Args:
        opened: without this batch's own lines.
        tokens: what this batch adds to `enqueued`, the tokens enqueued for its model.
    """
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
    """Why a file can't be kept on top of those that are."""
    if not limits.stored_bytes or stored_bytes + size_bytes <= limits.stored_bytes:
        return None
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


def _chosen(own: int | None, default: int) -> int:
    return default if own is None else own
