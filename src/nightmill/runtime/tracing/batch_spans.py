"""Spans of batches, their phases and segments, made from events.

Several processes work on a batch, and none knows it from its beginning to its end. The ids of the trace, of
the batch's span and of its phases are therefore computed from the id of the batch: each process can name the
parent of its spans, whichever process sends that parent, and when.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from nightmill.core import batch as core
from nightmill.ids import BatchId
from nightmill.runtime.tracing import names
from nightmill.telemetry import BatchMoved, Emit, Event, LeaseWasLost, SegmentDone, SegmentLeased

_NS: Final = 1_000_000_000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class GivenIds(RandomIdGenerator):
    """Random ids, except for spans whose ids are given."""

    def __init__(self) -> None:
        self._trace_id: int | None = None
        self._span_id: int | None = None

    def give(self, trace_id: int, span_id: int) -> None:
        """The ids of the next span, which must be made at once."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        given, self._trace_id = self._trace_id, None
        return given or super().generate_trace_id()

    def generate_span_id(self) -> int:
        given, self._span_id = self._span_id, None
        return given or super().generate_span_id()


def trace_id_of(batch_id: BatchId) -> int:
    """The trace of a batch."""
    return _number(batch_id, size_bytes=16)


def span_id_of(batch_id: BatchId, phase: str = "") -> int:
    """The span of a phase; without one, of the batch."""
    return _number(f"{batch_id} {phase}", size_bytes=8)


def within(batch_id: BatchId, phase: str = "") -> Context:
    """The context of spans below a phase, or below the batch."""
    parent = SpanContext(
        trace_id_of(batch_id), span_id_of(batch_id, phase), is_remote=True, trace_flags=_SAMPLED
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


class BatchSpans:
    """Makes the spans that events are about.

    Args:
        ids: of the tracer's provider.
    """

    def __init__(self, tracer: Tracer, ids: GivenIds) -> None:
        self._tracer = tracer
        self._ids = ids
        self._segments: dict[tuple[BatchId, int], Span] = {}

    def subscribed(self, emit: Emit) -> Callable[[Event], None]:
        """A subscriber that makes spans and passes the events on."""

        def trace_and_emit(event: Event) -> None:
            self.note(event)
            emit(event)

        return trace_and_emit

    def segment(self, batch_id: BatchId, number: int) -> Span | None:
        """The span of a segment that this process has leased."""
        return self._segments.get((batch_id, number))

    def note(self, event: Event) -> None:
        """Takes an event into account."""
        match event:
            case BatchMoved(batch) if batch.status.is_terminal:
                self._trace_batch(batch)
            case SegmentLeased(batch_id, number, token):
                self._segments[batch_id, number] = self._tracer.start_span(
                    names.SEGMENT_SPAN,
                    context=within(batch_id, core.Status.IN_PROGRESS),
                    attributes={names.BATCH: batch_id, names.SEGMENT: number, names.LEASE: token},
                )
            case SegmentDone(batch_id, number, _, answered):
                if (span := self._segments.pop((batch_id, number), None)) is not None:
                    span.set_attribute(names.SEGMENT_ANSWERED, answered)
                    span.end()
            case LeaseWasLost(batch_id, number, _):
                if (span := self._segments.pop((batch_id, number), None)) is not None:
                    span.set_attribute(names.ERROR_TYPE, "lease_lost")
                    span.set_status(Status(StatusCode.ERROR))
                    span.end()
            case _:
                return

    def _trace_batch(self, batch: core.Batch) -> None:
        phases = list(phases_of(batch))
        ended_at = max([batch.created_at, *(end for _, _, end in phases)])
        attributes: dict[str, str | int] = {
            names.BATCH: batch.id,
            names.BATCH_STATUS: batch.status.value,
            names.BATCH_LINES: batch.total,
            names.BATCH_FAILED: batch.tally.failed,
            names.ENDPOINT: batch.endpoint,
        }
        self._ids.give(trace_id_of(batch.id), span_id_of(batch.id))
        root = self._tracer.start_span(
            names.BATCH_SPAN, context=Context(), start_time=batch.created_at * _NS, attributes=attributes
        )
        if batch.status is not core.Status.COMPLETED:
            root.set_attribute(names.ERROR_TYPE, batch.status.value)
            root.set_status(Status(StatusCode.ERROR))
        root.end(ended_at * _NS)
        for phase, start, end in phases:
            self._ids.give(trace_id_of(batch.id), span_id_of(batch.id, phase))
            span = self._tracer.start_span(
                f"{names.BATCH_SPAN} {phase}",
                context=within(batch.id),
                start_time=start * _NS,
                attributes={names.BATCH: batch.id},
            )
            span.end(end * _NS)


def phases_of(batch: core.Batch) -> Iterator[tuple[str, int, int]]:
    """The phases of an ended batch, with the Unix seconds at which each began and ended."""
    ended_at = batch.completed_at or batch.expired_at or batch.cancelled_at or batch.failed_at
    stamps = (
        (core.Status.VALIDATING, batch.created_at),
        (core.Status.IN_PROGRESS, batch.in_progress_at),
        (core.Status.FINALIZING, batch.finalizing_at),
        (core.Status.CANCELLING, batch.cancelling_at),
    )
    begun = [(status.value, at) for status, at in stamps if at is not None]
    ends = [*(at for _, at in begun[1:]), ended_at]
    for (phase, start), end in zip(begun, ends, strict=True):
        yield phase, start, start if end is None else max(start, end)


def _number(text: str, *, size_bytes: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size_bytes).digest(), "big") or 1
