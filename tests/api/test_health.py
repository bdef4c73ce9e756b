"""/health, /ready and /version."""

import asyncio
from dataclasses import replace

from nightmill.api import health
from nightmill.telemetry import UpstreamHeld


def test_health_ready_and_version_respond(server):
    assert server.send("GET", "/health").json() == {"status": "ok"}
    assert server.send("GET", "/ready").json() == {"status": "ready"}
    version = server.send("GET", "/version").json()
    assert version["name"] == "nightmill"
    assert version["version"]


def test_ready_names_what_is_held(serve):
    held = UpstreamHeld(
        "default", "m", "it answers 503", 1_764_408_316.5, 1_764_408_320.9, needs_operator=False
    )
    server = serve(change=lambda context: replace(context, trouble=lambda: "words", held=lambda: [held]))
    assert server.send("GET", "/ready").json() == {
        "status": "ready",
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
