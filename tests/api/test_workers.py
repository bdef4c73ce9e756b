"""The list of processes, and the samples of upstreams, over HTTP."""

import json

import msgspec
import pytest

from nightmill.api.workers import totals_of, workers_on_wire
from nightmill.core.counts import ProcessCounts
from nightmill.core.process_info import ProcessInfo
from nightmill.core.upstream_report import BatchLines, ModelReport, UpstreamReport
from nightmill.core.upstream_sample import UpstreamSample
from nightmill.ids import BatchId, WorkerId
from nightmill.store.upstreams import WorkerReport
from nightmill.store.workers import HeldLease, KnownProcess, LeaseKind
from tests.api.test_tenants import admin_key

A, B, C = WorkerId("worker_a"), WorkerId("worker_b"), WorkerId("worker_c")
NOW = 1_760_000_100.0
WORKER = ProcessInfo("gpu-3", 4711, ("worker",), "0.9", 1_760_000_000.0)
KEEPER = ProcessInfo("gpu-3", 4712, ("intake", "finalizer"), "0.9", 1_760_000_001.0)


def report(worker: WorkerId, **fields) -> WorkerReport:
    models = (ModelReport("m", in_flight=4, answered_per_s=2.5, tokens_per_s=100.0),)
    made = UpstreamReport("gpu", NOW, in_flight=4, waiting=1, per_model=models, **fields)
    return WorkerReport("gpu", worker, msgspec.json.encode(made).decode(), NOW)


def segments(batch: str, *, holder: WorkerId = A, lines: int = 500) -> HeldLease:
    return HeldLease(holder, LeaseKind.SEGMENTS, BatchId(batch), None, 2, lines, 100, 25.0)


def test_a_worker_is_shown_with_what_it_holds_and_what_it_reports():
    reports = [report(A, batches=(BatchLines("batch_2", 4),))]
    leases = [segments("batch_1"), segments("batch_2")]
    (shown,) = workers_on_wire([KnownProcess(A, WORKER, 3.0)], leases, reports, now=NOW)
    assert (shown["host"], shown["pid"], shown["roles"]) == ("gpu-3", 4711, ["worker"])
    assert (shown["heard_at"], shown["is_silent"]) == (NOW - 3, False)
    assert (shown["in_flight"], shown["waiting"], shown["answered_per_s"]) == (4, 1, 2.5)
    assert (shown["segments"], shown["lines"], shown["answered"], shown["batches"]) == (4, 1_000, 200, 2)
    assert [(lease["batch_id"], lease["in_flight"]) for lease in shown["leases"]] == [
        ("batch_2", 4),
        ("batch_1", 0),
    ]


def test_processes_are_ordered_by_machine_and_summed():
    other = ProcessInfo("cpu-1", 7, ("worker",), "0.9", 1_760_000_050.0)
    processes = [KnownProcess(A, KEEPER, 1.0), KnownProcess(B, WORKER, 1.0), KnownProcess(C, other, 90.0)]
    shown = workers_on_wire(processes, [segments("batch_1", holder=B)], [report(B), report(C)], now=NOW)
    assert [worker["id"] for worker in shown] == [C, B, A]
    totals = totals_of(shown)
    assert (totals["machines"], totals["processes"], totals["silent"]) == (2, 3, 1)
    assert (totals["in_flight"], totals["answered_per_s"], totals["segments"]) == (8, 5.0, 2)


def test_the_holder_of_a_lease_that_never_reported_is_shown_as_silent():
    (shown,) = workers_on_wire([], [segments("batch_1")], [], now=NOW)
    assert (shown["id"], shown["host"], shown["is_silent"], shown["segments"]) == (A, None, True, 2)
    assert shown["heard_at"] is None


def test_a_report_of_another_version_is_left_out():
    broken = WorkerReport("gpu", A, "[]", NOW)
    (shown,) = workers_on_wire([KnownProcess(A, WORKER, 3.0)], [], [broken], now=NOW)
    assert shown["in_flight"] == 0


@pytest.fixture
def server(serve):
    return serve(settings={"upstreams": [{"name": "gpu", "url": "http://gpu:8000/v1"}]})


def test_the_processes_of_the_store_are_listed(server):
    store = server.context.store
    server.do(store.counts.report(A, ProcessCounts(), is_first=True, info=WORKER))
    shown = server.send("GET", "/nightmill/v1/workers").json()
    assert [worker["id"] for worker in shown["data"]] == [A]
    assert shown["totals"]["processes"] == 1


def add_samples(server, *samples: UpstreamSample) -> None:
    for sample in samples:
        server.do(server.context.store.upstream_samples.add({"gpu": sample}))


def test_samples_are_listed_with_rates_and_the_changes_of_the_limit(server):
    now = int(server.context.clock()) // 5 * 5
    add_samples(
        server,
        UpstreamSample(at=now - 30_000, concurrency_limit=4, rule="start"),
        UpstreamSample(at=now - 15, concurrency_limit=16, rule="start", answered=100),
        UpstreamSample(at=now - 10, concurrency_limit=32, rule="grow", answered=150, refused=5),
    )
    path = "/nightmill/v1/upstreams/gpu/samples"
    shown = server.send("GET", path).json()
    assert [(one["limit"], one["answered_per_s"], one["refused_per_s"]) for one in shown["data"]] == [
        (16, None, None),
        (32, 10.0, 1.0),
    ]
    (change,) = shown["limit_changes"]
    assert (change["from"], change["to"], change["rule"]) == (16, 32, "grow")
    assert "the limit grows" in change["why"]
    assert len(server.send("GET", f"{path}?over_s=86400").json()["data"]) == 3
    assert server.send("GET", f"{path}?over_s=5").error["param"] == "over_s"


def test_an_upstream_says_what_was_counted_lately(server):
    assert server.send("GET", "/nightmill/v1/upstreams/gpu").json()["recent"] is None
    now = int(server.context.clock()) // 5 * 5
    add_samples(
        server,
        UpstreamSample(at=now - 20, answered=100),
        UpstreamSample(at=now - 10, answered=150, refused=5, failed=1, output_tokens=400),
    )
    shown = json.loads(server.send("GET", "/nightmill/v1/upstreams/gpu").body)["recent"]
    assert shown == {
        "over_s": 10.0,
        "answered": 50,
        "refused": 5,
        "failed": 1,
        "output_tokens": 400,
        "answered_per_s": 5.0,
        "output_tokens_per_s": 40.0,
    }


@pytest.mark.parametrize("path", ["/nightmill/v1/workers", "/nightmill/v1/upstreams/gpu/samples"])
def test_only_an_admin_key_sees_them(serve, path):
    server = serve()
    assert server.send("GET", path, key=server.new_key("team")).status == 401
    assert server.send("GET", path, key=admin_key(server)).status == 200
