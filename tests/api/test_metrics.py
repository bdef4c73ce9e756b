"""/metrics: correct values by Prometheus' conventions, no names, few queries of the store."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nightmill.api import metrics
from nightmill.api.context import ApiContext
from nightmill.api.health import VERSION
from nightmill.api.metric_list import METRICS, MetricKind
from nightmill.core.batch import Status, Usage
from nightmill.core.counts import ProcessCounts
from nightmill.core.upstream_report import ModelReport, UpstreamReport
from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId
from nightmill.store import Backlog
from nightmill.store.upstreams import WorkerReport
from nightmill.telemetry import UpstreamHeld
from tests.api.conftest import Answer


def figures_of(answer: Answer) -> dict[tuple[str, ...], float]:
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


class Batches:
    """A store of which only the batches' backlog and the reports on upstreams exist."""

    @property
    def batches(self) -> Self:
        return self

    @property
    def upstreams(self) -> Self:
        return self

    @property
    def counts(self) -> Self:
        return self

    async def total(self) -> ProcessCounts:
        return ProcessCounts()

    async def reports(self, **_: float) -> list[WorkerReport]:
        return []


@dataclass
class Counting(Batches):
    """Counts how often the backlog is read."""

    backlog_now: Backlog = field(default_factory=lambda: Backlog({Status.IN_PROGRESS: 3}, 41, 7))
    looks: int = 0

    async def backlog(self) -> Backlog:
        self.looks += 1
        return self.backlog_now


def over(store: Any, **changes: Any) -> Callable[[ApiContext], ApiContext]:
    return lambda context: replace(context, store=store, **changes)


def test_the_metrics_cover_the_store_and_this_process(serve):
    found = figures_of(serve(change=over(Counting())).send("GET", "/metrics"))
    assert found["nightmill_build", VERSION] == 1
    assert found["nightmill_segments", "waiting"] == 41
    assert found["nightmill_segments", "leased"] == 7
    batches = {key[1]: value for key, value in found.items() if key[0] == "nightmill_batches"}
    assert batches == {"validating": 0, "in_progress": 3, "finalizing": 0, "cancelling": 0}
    assert found["process_resident_memory_bytes",] > 1 << 20


def test_what_is_held_is_a_gauge_of_1_and_gone_when_it_is_over(serve):
    now, held = [1_000.0], [UpstreamHeld("default", 'm"\\', "it answers 503", 1.0, 2.0, needs_operator=False)]
    held.append(replace(held[0], model=None, needs_operator=True))
    server = serve(change=over(Counting(), clock=lambda: now[0], held=lambda: held))
    found = figures_of(server.send("GET", "/metrics"))
    gauges = {key[1:]: value for key, value in found.items() if key[0] == "nightmill_upstream_held"}
    assert gauges == {('m"\\', "false", "default"): 1, ("", "true", "default"): 1}
    held.clear()
    now[0] += metrics.CACHE_S
    assert not [
        key for key in figures_of(server.send("GET", "/metrics")) if key[0] == "nightmill_upstream_held"
    ]


def test_what_all_workers_report_of_an_upstream_is_summed(serve):
    server = serve()
    entries = (
        ModelReport("m", limit=64, rule="grow", in_flight=40, answered_per_s=2.5, tokens_per_s=100.0),
        ModelReport(None, limit=8, in_flight=1),
    )
    report = msgspec.json.encode(UpstreamReport("gpu", 1.0, per_model=entries)).decode()
    for worker in ("worker_1", "worker_2"):
        server.do(server.context.store.upstreams.report(WorkerId(worker), {"gpu": report}))
    found = figures_of(server.send("GET", "/metrics"))
    found = {key: value for key, value in found.items() if key[0].startswith("nightmill_upstream")}
    assert found["nightmill_upstream_limit", "m", "grow", "gpu"] == 64
    assert found["nightmill_upstream_limit", "", "", "gpu"] == 8
    assert found["nightmill_upstream_in_flight", "m", "gpu"] == 80
    assert found["nightmill_upstream_answers_per_second", "m", "gpu"] == 5
    assert found["nightmill_upstream_tokens_per_second", "m", "gpu"] == 200


def test_a_new_batch_is_counted_and_not_named(serve):
    server = serve()
    client = server.client()
    line = (
        b'{"custom_id": "secret-name", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}\n'
    )
    file = client.files.create(file=("in.jsonl", line), purpose="batch")
    client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"who": "acme"}
    )
    answer = server.send("GET", "/metrics")
    assert figures_of(answer)["nightmill_batches", "validating"] == 1
    for name in ("secret-name", "acme", file.id, "in.jsonl", "default"):
        assert name.encode() not in answer.body


def test_concurrent_scrapes_share_a_query_of_the_store(serve):
    store, now = Counting(), [1_000.0]
    server = serve(change=over(store, clock=lambda: now[0]))
    for _ in range(5):
        assert server.send("GET", "/metrics").status == 200
    assert store.looks == 1
    now[0] += metrics.CACHE_S
    store.backlog_now = Backlog({}, 0, 0)
    assert figures_of(server.send("GET", "/metrics"))["nightmill_segments", "waiting"] == 0
    assert store.looks == 2


class Away(Batches):
    async def backlog(self) -> Backlog:
        raise UnavailableError("The store is away.", retry_after_s=2)


class Stuck(Batches):
    async def backlog(self) -> Backlog:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("store", [Away(), Stuck()], ids=["away", "stuck"])
def test_without_the_store_its_metrics_are_missing_and_not_stale(serve, monkeypatch, store):
    monkeypatch.setattr(metrics, "_STORE_TIMEOUT_S", 0.05)
    found = figures_of(serve(change=over(store)).send("GET", "/metrics"))
    assert found["nightmill_database_up",] == 0
    assert found["nightmill_disk_free_bytes",] > 0
    assert not [key for key in found if key[0] in {"nightmill_batches", "nightmill_database_query_seconds"}]


def test_what_processes_counted_is_summed_and_stays_when_they_end(serve):
    server = serve()
    for worker in ("worker_1", "worker_2"):
        counts = ProcessCounts()
        upstream = counts.of_upstream("gpu")
        upstream.note_answers([0.07, 700.0], [Usage(10, 4, 3, 0, 13)])
        upstream.note_attempt("load", 0.2)
        upstream.note_first_byte(0.3)
        upstream.note_retry(1.5)
        upstream.note_rate_wait()
        counts.note_intake(2.0)
        counts.note_end("completed", finalizing_s=3.0)
        counts.note_delivery("delivered")
        server.do(server.context.store.counts.report(WorkerId(worker), counts, is_first=True))
    server.do(server.context.store.leases.release_of_worker(WorkerId("worker_1")))
    found = figures_of(server.send("GET", "/metrics"))
    assert found["nightmill_attempts_total", "answered", "gpu"] == 4
    assert found["nightmill_attempts_total", "load", "gpu"] == 2
    assert found["nightmill_attempts_total", "unreachable", "gpu"] == 0
    assert found["nightmill_attempt_duration_seconds_bucket", "0.05", "gpu"] == 0
    assert found["nightmill_attempt_duration_seconds_bucket", "0.1", "gpu"] == 2
    assert found["nightmill_attempt_duration_seconds_bucket", "600.0", "gpu"] == 4
    assert found["nightmill_attempt_duration_seconds_bucket", "+Inf", "gpu"] == 6
    assert found["nightmill_attempt_duration_seconds_sum", "gpu"] == pytest.approx(1400.54)
    assert found["nightmill_attempt_first_byte_seconds_count", "gpu"] == 2
    assert found["nightmill_tokens_total", "input", "gpu"] == 20
    assert found["nightmill_tokens_total", "cached", "gpu"] == 8
    assert found["nightmill_tokens_total", "output", "gpu"] == 6
    assert found["nightmill_retries_total", "gpu"] == 2
    assert found["nightmill_retry_wait_seconds_total", "gpu"] == 3
    assert found["nightmill_rate_limit_waits_total", "gpu"] == 2
    assert found["nightmill_intake_seconds_bucket", "5.0"] == 2
    assert found["nightmill_finalizing_seconds_count",] == 2
    assert found["nightmill_batches_ended_total", "completed"] == 2
    assert found["nightmill_webhook_deliveries_total", "delivered"] == 2


def test_the_age_of_the_oldest_unfinished_batch_is_shown(serve):
    store = Counting(Backlog({}, 0, 0, oldest_created_at=400))
    server = serve(change=over(store, clock=lambda: 1_000.0))
    assert figures_of(server.send("GET", "/metrics"))["nightmill_oldest_batch_age_seconds",] == 600


def test_names_and_labels_follow_the_conventions():
    for metric in METRICS:
        assert metric.name.startswith("nightmill_")
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric.name
        assert metric.help.endswith(".")
        assert metric.kind is not MetricKind.HISTOGRAM or metric.name.endswith("_seconds")
        assert not {"batch", "batch_id", "key", "custom_id", "project"} & set(metric.labels)
        assert not [unit for unit in ("_ms", "_minutes", "_mb", "_kib") if unit in metric.name]


def test_importing_the_app_does_not_import_the_metrics_library():
    program = "import sys, nightmill.api.app; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
