"""Spans of sampled attempts, and their context for the upstream, around the lean transport.

An attempt that is not sampled costs one call. A prompt or an answer is part of a span only if the setting
`traces.content` says so.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, TooLong, Unreachable
from nightmill.roles.model_lines import PendingLine
from nightmill.runtime.tracing import names
from nightmill.runtime.tracing.batch_spans import BatchSpans
from nightmill.settings import TraceSettings
from nightmill.upstream.http1 import LeanUpstream
from nightmill.upstream.port import Tag

_FIRST_ERROR: Final = 400
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class _Usage(msgspec.Struct):
    """Tokens, by the names of either family of endpoints."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None


class TracedUpstream:
    """An upstream that makes a span for a share of its attempts.

    Args:
        name: of the upstream.
        client: sends the attempts.
        random: numbers in [0, 1).
    """

    def __init__(
        self,
        name: str,
        client: LeanUpstream,
        *,
        tracer: Tracer,
        batches: BatchSpans,
        settings: TraceSettings,
        random: Callable[[], float],
    ) -> None:
        self._name = name
        self._client = client
        self._tracer = tracer
        self._batches = batches
        self._share = settings.attempt_share
        self._has_content = settings.content
        self._random = random
        self._spans: dict[object, Span] = {}
        self.send = client.send
        self.models = client.models
        self.get = client.get
        self.close = client.close
        self.time_first_bytes = client.time_first_bytes

    def start(
        self,
        tag: Tag,
        endpoint: str,
        body: bytes,
        *,
        timeout_s: float,
        on_outcome: Callable[[Tag, Outcome], None],
    ) -> None:
        """See `Attempts`."""
        if not isinstance(tag, PendingLine) or self._random() >= self._share:
            self._client.start(tag, endpoint, body, timeout_s=timeout_s, on_outcome=on_outcome)
            return
        span = self._spans[tag] = self._start_span(tag, endpoint, body)

        def on_traced_outcome(ended: Tag, outcome: Outcome) -> None:
            self._spans.pop(ended, None)
            self._end_span(span, outcome)
            on_outcome(ended, outcome)

        self._client.start(
            tag,
            endpoint,
            body,
            timeout_s=timeout_s,
            on_outcome=on_traced_outcome,
            head_lines=_head_lines(span),
        )

    def give_up(self, tag: object) -> None:
        """See `Attempts`."""
        if (span := self._spans.pop(tag, None)) is not None:
            span.set_attribute(names.ERROR_TYPE, "given_up")
            span.end()
        self._client.give_up(tag)

    def _start_span(self, line: PendingLine, endpoint: str, body: bytes) -> Span:
        operation = names.OPERATIONS.get(endpoint, names.OTHER_OPERATION)
        segment = line.segment.lease.segment
        attributes: dict[str, str | int] = {
            names.OPERATION: operation,
            names.PROVIDER: names.PROVIDER_OF_THE_API,
            names.UPSTREAM: self._name,
            names.ENDPOINT: endpoint,
            names.BATCH: segment.batch_id,
            names.SEGMENT: segment.number,
        }
        if line.model is not None:
            attributes[names.REQUEST_MODEL] = line.model
        if self._has_content:
            attributes[names.INPUT_CONTENT] = body.decode(errors="replace")
        parent = self._batches.segment(segment.batch_id, segment.number)
        return self._tracer.start_span(
            operation if line.model is None else f"{operation} {line.model}",
            context=None if parent is None else set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            attributes=attributes,
        )

    def _end_span(self, span: Span, outcome: Outcome) -> None:
        match outcome:
            case Answered():
                span.set_attribute(names.STATUS_CODE, outcome.status)
                span.set_attributes(_answer_attributes(outcome.body))
                if self._has_content:
                    span.set_attribute(names.OUTPUT_CONTENT, outcome.body.decode(errors="replace"))
                error = str(outcome.status) if outcome.status >= _FIRST_ERROR else None
            case Broken() | TooLong() | TimedOut():
                error = outcome.code
            case Unreachable():
                error = "upstream_unreachable"
        if error is not None:
            span.set_attribute(names.ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def _answer_attributes(body: bytes) -> dict[str, str | int]:
    try:
        answer = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    usage = answer.usage or _Usage()
    found: dict[str, Any] = {
        names.RESPONSE_ID: answer.id,
        names.RESPONSE_MODEL: answer.model,
        names.INPUT_TOKENS: usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
        names.OUTPUT_TOKENS: (
            usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
        ),
    }
    return {name: value for name, value in found.items() if value is not None}


def _head_lines(span: Span) -> bytes:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=set_span_in_context(span))
    return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("ascii")
