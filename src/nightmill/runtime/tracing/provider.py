"""Opens the tracer of one process, which sends spans over OTLP/HTTP from a thread of its own."""

import random

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

import nightmill
from nightmill.runtime.tracing.attempt_spans import TracedUpstream
from nightmill.runtime.tracing.batch_spans import BatchSpans, GivenIds
from nightmill.settings import TraceSettings
from nightmill.telemetry import Emit
from nightmill.upstream import Upstream
from nightmill.upstream.http1 import LeanUpstream

_LIBRARY = "nightmill"


class Tracing:
    """The spans of one process.

    Args:
        settings: `[traces]`; what they leave open is read from the standard `OTEL_...` variables.
        role, instance: the process, as spans name it.
        exporter: sends the spans; None for OTLP/HTTP.
    """

    def __init__(
        self, settings: TraceSettings, *, role: str, instance: str, exporter: SpanExporter | None = None
    ) -> None:
        ids = GivenIds()
        resource = Resource.create(
            {
                "service.name": _LIBRARY,
                "service.version": nightmill.__version__,
                "service.instance.id": instance,
                "nightmill.role": role,
            }
        )
        self._provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        exporter = exporter or OTLPSpanExporter(endpoint=settings.endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_LIBRARY, nightmill.__version__)
        self._batches = BatchSpans(self._tracer, ids)
        self._settings = settings

    def subscribed(self, emit: Emit) -> Emit:
        """A subscriber that makes spans of batches and segments, and passes the events on."""
        return self._batches.subscribed(emit)

    def traced(self, name: str, client: Upstream) -> Upstream:
        """The client, which makes spans of sampled attempts if any are; only the lean transport can."""
        if self._settings.attempt_share <= 0 or not isinstance(client, LeanUpstream):
            return client
        return TracedUpstream(
            name,
            client,
            tracer=self._tracer,
            batches=self._batches,
            settings=self._settings,
            random=random.random,
        )

    def close(self) -> None:
        """Sends what was not sent yet. Blocks, for some seconds where the receiver is away."""
        self._provider.shutdown()
