"""Spans of batches, segments and attempts: in memory, and at a real OTLP receiver."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="nightmill[otel] is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from nightmill import telemetry
from nightmill.core.batch import Batch, Status, Tally
from nightmill.core.outcome import Answered, Outcome, TimedOut
from nightmill.core.request_line import RequestLine
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.roles.model_lines import PendingLine
from nightmill.runtime.tracing import names
from nightmill.runtime.tracing.batch_spans import phases_of, span_id_of, trace_id_of
from nightmill.runtime.tracing.provider import Tracing
from nightmill.settings import TraceSettings, UpstreamSettings
from nightmill.upstream.http1 import LeanUpstream
from nightmill.upstream.target import target_of
from tests.faults.served import request_lines, serving

BATCH_ID = BatchId("batch_1")
ANSWER = b'{"id": "c-1", "model": "m-7b", "usage": {"prompt_tokens": 3, "completion_tokens": 5}, "secret": 1}'
PROMPT = b'{"model": "m", "messages": [{"role": "user", "content": "a prompt"}]}'


def batch(status: Status, **stamps: int) -> Batch:
    return Batch(
        id=BATCH_ID,
        project_id=ProjectId("p"),
        endpoint="/v1/chat/completions",
        input_file_id=FileId("file-1"),
        input_blob_key="files/1",
        completion_window="24h",
        created_at=100,
        expires_at=1_000,
        status=status,
        total=5,
        tally=Tally(completed=4, failed=1),
        **stamps,
    )


class Sent(LeanUpstream):
    """Keeps what was started, and answers when the test says so."""

    def __init__(self) -> None:
        super().__init__(
            target_of("http://127.0.0.1:1/v1", UpstreamSettings()),
            tls=None,
            connect_timeout_s=1.0,
            max_answer_bytes=1 << 20,
        )
        self.started: list[dict[str, Any]] = []
        self.given_up: list[object] = []

    def start(self, tag: Any, endpoint: str, body: bytes, **named: Any) -> None:
        self.started.append({"tag": tag, "endpoint": endpoint, "body": body, **named})

    def give_up(self, tag: object) -> None:
        self.given_up.append(tag)


class Traced:
    """The tracing of one process, with its spans in memory."""

    def __init__(self, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(
            TraceSettings(enabled=True, **settings),
            role="worker:0",
            instance="worker_1",
            exporter=self.exporter,
        )
        self.seen: list[telemetry.Event] = []
        self.emit = self.tracing.subscribed(self.seen.append)
        self.client = Sent()
        self.upstream: Any = self.tracing.traced("gpu", self.client)

    def spans(self) -> list[ReadableSpan]:
        self.tracing.close()
        return list(self.exporter.get_finished_spans())

    def attempt(self, outcome: Outcome | None) -> PendingLine:
        """One attempt of a line of segment 4, which ends with the outcome, or is given up."""
        segment = SimpleNamespace(lease=SimpleNamespace(segment=SimpleNamespace(batch_id=BATCH_ID, number=4)))
        line = PendingLine(segment, 0, RequestLine(b'"custom-1"', PROMPT), "m")  # type: ignore[arg-type]
        ended: list[object] = []
        self.upstream.start(
            line,
            "/v1/chat/completions",
            PROMPT,
            timeout_s=1.0,
            on_outcome=lambda tag, found: ended.append((tag, found)),
        )
        if outcome is None:
            self.upstream.give_up(line)
            assert self.client.given_up == [line]
        else:
            self.client.started[-1]["on_outcome"](line, outcome)
            assert ended == [(line, outcome)]
        return line


def test_an_ended_batch_is_one_trace_with_a_span_for_each_phase():
    traced = Traced()
    event = telemetry.BatchMoved(
        batch(Status.COMPLETED, in_progress_at=110, finalizing_at=150, completed_at=160)
    )
    traced.emit(telemetry.BatchMoved(batch(Status.IN_PROGRESS, in_progress_at=110)))
    traced.emit(event)
    assert traced.seen[-1] is event
    spans = {span.name: span for span in traced.spans()}
    assert list(spans) == ["batch", "batch validating", "batch in_progress", "batch finalizing"]
    times = {name: (span.start_time // 10**9, span.end_time // 10**9) for name, span in spans.items()}
    assert times["batch"] == (100, 160)
    assert times["batch in_progress"] == (110, 150)
    root = spans["batch"]
    assert root.parent is None
    assert (root.context.trace_id, root.context.span_id) == (trace_id_of(BATCH_ID), span_id_of(BATCH_ID))
    assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}
    assert {span.parent.span_id for span in spans.values() if span.parent} == {root.context.span_id}
    assert root.attributes[names.BATCH] == BATCH_ID
    assert root.attributes[names.BATCH_FAILED] == 1
    assert root.status.status_code is StatusCode.UNSET
    assert root.resource.attributes["service.name"] == "nightmill"


def test_a_batch_that_is_not_completed_is_an_error():
    traced = Traced()
    traced.emit(
        telemetry.BatchMoved(batch(Status.EXPIRED, in_progress_at=110, finalizing_at=150, expired_at=151))
    )
    root = traced.spans()[0]
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes[names.ERROR_TYPE] == "expired"


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ({"failed_at": 105}, [("validating", 100, 105)]),
        (
            {"in_progress_at": 110, "cancelling_at": 120, "cancelled_at": 121},
            [("validating", 100, 110), ("in_progress", 110, 120), ("cancelling", 120, 121)],
        ),
    ],
)
def test_the_phases_of_a_batch_follow_one_another(stamps, expected):
    assert list(phases_of(batch(Status.FAILED, **stamps))) == expected


def test_a_segment_is_a_span_below_the_phase_in_which_it_is_answered():
    traced = Traced()
    traced.emit(telemetry.SegmentLeased(BATCH_ID, 4, 2))
    traced.emit(telemetry.SegmentLeased(BATCH_ID, 5, 1))
    traced.emit(telemetry.SegmentDone(BATCH_ID, 4, 2, 7))
    traced.emit(telemetry.LeaseWasLost(BATCH_ID, 5, 1))
    traced.emit(telemetry.SegmentDone(BATCH_ID, 6, 1, 7))
    done, lost = traced.spans()
    assert done.parent.span_id == span_id_of(BATCH_ID, "in_progress")
    assert done.context.trace_id == trace_id_of(BATCH_ID)
    assert done.attributes[names.SEGMENT_ANSWERED] == 7
    assert (lost.attributes[names.SEGMENT], lost.attributes[names.ERROR_TYPE]) == (5, "lease_lost")


def test_a_sampled_attempt_is_a_span_of_its_segment_and_its_context_goes_to_the_upstream():
    traced = Traced(attempt_share=1.0)
    traced.emit(telemetry.SegmentLeased(BATCH_ID, 4, 2))
    traced.attempt(Answered(200, ANSWER))
    traced.emit(telemetry.SegmentDone(BATCH_ID, 4, 2, 1))
    attempt, segment = traced.spans()
    assert attempt.name == "chat m"
    assert attempt.parent.span_id == segment.context.span_id
    context = f"00-{attempt.context.trace_id:032x}-{attempt.context.span_id:016x}-01"
    assert traced.client.started[0]["head_lines"] == f"traceparent: {context}\r\n".encode()
    assert dict(attempt.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.response.id": "c-1",
        "gen_ai.response.model": "m-7b",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "http.response.status_code": 200,
        "nightmill.batch.id": BATCH_ID,
        "nightmill.endpoint": "/v1/chat/completions",
        "nightmill.segment.number": 4,
        "nightmill.upstream": "gpu",
    }


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Answered(503, b"busy"), "503"),
        (TimedOut(1.0), "request_timeout"),
        (None, "given_up"),
    ],
)
def test_the_span_of_an_attempt_that_failed_says_why(outcome, error):
    traced = Traced(attempt_share=1.0)
    traced.attempt(outcome)
    (span,) = traced.spans()
    assert span.attributes[names.ERROR_TYPE] == error


@pytest.mark.parametrize("is_captured", [False, True])
def test_prompts_and_answers_are_in_a_span_only_if_asked_for(is_captured):
    traced = Traced(attempt_share=1.0, content=is_captured)
    traced.attempt(Answered(200, ANSWER))
    (span,) = traced.spans()
    assert ("a prompt" in span.to_json()) is is_captured
    assert ("secret" in span.to_json()) is is_captured


def test_an_attempt_that_is_not_sampled_is_passed_on_as_it_is():
    traced = Traced(attempt_share=1e-12)
    traced.attempt(Answered(200, ANSWER))
    assert "head_lines" not in traced.client.started[0]
    assert traced.spans() == []


def test_without_sampling_a_client_is_not_wrapped():
    traced = Traced()
    assert traced.upstream is traced.client


def test_the_extra_is_not_loaded_while_traces_are_off():
    program = "import sys, nightmill.runtime.role_process; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class Receiver(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            for scope in resource_spans.scope_spans:
                self.server.spans.extend(scope.spans)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


class Model(BaseHTTPRequestHandler):
    """Answers each line, and keeps the `traceparent` of each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(self.headers.get("traceparent"))  # type: ignore[attr-defined]
        self.answer(200, {"id": "c", "model": "m", "choices": [], "usage": {"prompt_tokens": 1}})

    def answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_server_sends_the_trace_of_a_batch_to_an_otlp_receiver(tmp_path):
    with listening(Receiver, spans=[]) as receiver, listening(Model, seen=[]) as model:
        settings = {
            "traces__enabled": "true",
            "traces__endpoint": f"{url_of(receiver)}/v1/traces",
            "traces__attempt_share": 1,
        }
        flags = ("--upstream", f"{url_of(model)}/v1")
        with serving(tmp_path, flags=flags, **settings) as served:
            batch_id = served.batch(request_lines(5))
            assert served.until_ended(batch_id)["request_counts"]["completed"] == 5
        spans = [
            span for span in receiver.spans if span.trace_id == trace_id_of(batch_id).to_bytes(16, "big")
        ]
        ids = {span.span_id for span in spans}
        assert sorted(span.name for span in spans) == sorted(
            ["batch", "batch validating", "batch in_progress", "batch finalizing", "segment", *["chat m"] * 5]
        )
        assert all(span.parent_span_id in ids for span in spans if span.name != "batch")
        sent = {value.split("-")[2] for value in model.seen if value}
        assert sent == {span.span_id.hex() for span in spans if span.name == "chat m"}
        assert not [span for span in spans if b"marker:" in span.SerializeToString()]
