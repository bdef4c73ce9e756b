"""/health, /ready and /version, and the page that documents them."""

import asyncio
import json
from dataclasses import replace

import msgspec
import pytest

from nightmill.api import health, readiness
from nightmill.core.upstream_report import ModelHold, ModelReport, UpstreamReport
from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId
from nightmill.telemetry import UpstreamHeld


def test_health_ready_and_version_respond(server):
    assert server.send("GET", "/health").json() == {"status": "ok"}
    assert server.send("GET", "/ready").json()["status"] == "ready"
    version = server.send("GET", "/version").json()
    assert version["name"] == "nightmill"
    assert version["version"]


def test_ready_names_what_is_held(serve):
    held = UpstreamHeld(
        "default", "m", "it answers 503", 1_764_408_316.5, 1_764_408_320.9, needs_operator=False
    )
    server = serve(change=lambda context: replace(context, trouble=lambda: "words", held=lambda: [held]))
    found = server.send("GET", "/ready").json()
    assert found == {
        "status": "ready",
        "problems": ["words"],
        "trouble": "words",
        "held": [
            {
                "upstream": "default",
                "model": "m",
                "reason": "it answers 503",
                "since": 1_764_408_316,
                "until": 1_764_408_320,
                "needs_operator": False,
            }
        ],
    }


def test_a_store_timeout_makes_the_server_unready_but_keeps_it_healthy(serve, monkeypatch):
    class Stuck:
        async def ping(self):
            await asyncio.Event().wait()

    monkeypatch.setattr(health, "_PING_TIMEOUT_S", 0.05)
    server = serve(change=lambda context: replace(context, store=Stuck()))
    answer = server.send("GET", "/ready")
    assert answer.status == 503
    assert answer.error["type"] == "server_error"
    assert answer.headers["retry-after"] == "1"
    assert server.send("GET", "/health").status == 200


def report(server, *entries):
    document = msgspec.json.encode(UpstreamReport("gpu", 1.0, per_model=entries)).decode()
    server.do(server.context.store.upstreams.report(WorkerId("worker_1"), {"gpu": document}))


def problems(server):
    return server.send("GET", "/ready").json().get("problems", [])


def test_ready_says_when_no_worker_reports(serve, monkeypatch):
    server = serve()
    assert problems(server) == [], "workers may still be starting"
    monkeypatch.setattr(readiness, "START_GRACE_S", 0.0)
    assert problems(server) == [readiness.NO_WORKER]
    report(server)
    assert problems(server) == []


def test_ready_says_what_workers_of_other_machines_hold(serve):
    server = serve()
    hold = ModelHold("it refuses our key (401)", 1_764_408_316.5, needs_operator=True)
    report(server, ModelReport("m", held=hold), ModelReport("n"))
    assert problems(server) == [
        "model 'm' of upstream 'gpu' is held since 2025-11-29 09:25:16 UTC: it refuses our key (401)"
    ]


def test_ready_names_a_hold_once_although_the_store_has_it_too(serve):
    event = UpstreamHeld("gpu", "m", "it answers 503", 1_764_408_316.5, 1_764_408_320.9)
    server = serve(change=lambda context: replace(context, trouble=lambda: "words", held=lambda: [event]))
    report(server, ModelReport("m", held=ModelHold("it answers 500", 1_764_408_300.0)))
    assert problems(server) == ["words"]


def test_ready_repeats_the_trouble_of_this_machine_s_processes(serve):
    server = serve(change=lambda context: replace(context, trouble=lambda: "the disk is full"))
    assert problems(server) == ["the disk is full"]


class Disk:
    """Blobs on a disk with so many bytes free; None cannot be read."""

    def __init__(self, free_bytes):
        self.found = free_bytes

    async def free_bytes(self):
        if self.found is None:
            raise UnavailableError("the blob folder can't be read", retry_after_s=1)
        return self.found


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [
        (
            300 << 20,
            (
                "the disk of the data folder is nearly full: 300 MiB are free, and with less than 256 MiB"
                " (retention.free_bytes) nothing is written"
            ),
        ),
        (None, "the blob folder can't be read"),
        (1 << 40, None),
    ],
)
def test_ready_says_when_the_disk_is_nearly_full(serve, free_bytes, expected):
    server = serve(change=lambda context: replace(context, blobs=Disk(free_bytes)))
    assert problems(server) == ([] if expected is None else [expected])


def test_the_own_document_has_what_openai_does_not_publish(server):
    answer = server.send("GET", "/nightmill/openapi.json")
    document = answer.json()
    paths = document["paths"]
    assert {"/health", "/ready", "/version", "/metrics"} <= set(paths)
    assert {"/nightmill/v1/log_level", "/nightmill/v1/upstreams", "/nightmill/v1/usage"} <= set(paths)
    assert not [path for path in paths if path.startswith("/v1")]
    assert paths["/ready"]["get"]["security"] == []
    assert "503" in paths["/ready"]["get"]["description"]
    assert "requestBody" in paths["/nightmill/v1/log_level"]["post"]
    used = {piece.split('"', 1)[0] for piece in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert used <= set(document["components"]["schemas"])
    published = server.send("GET", "/openapi.json").json()["paths"]
    assert not set(paths) & set(published)
