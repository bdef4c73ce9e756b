"""What the snapshots take from the product, imported in one place."""

from typing import Any, cast

from fastapi import FastAPI

# Imported for their error classes.
import nightmill.blobs.bucket
import nightmill.runtime.ray.cluster  # noqa: F401
from nightmill.api import metrics as api_metrics
from nightmill.api.app import create_app
from nightmill.api.context import ApiContext
from nightmill.cli import app as command_line
from nightmill.cli.failures import MEANINGS
from nightmill.core.counts import ProcessCounts
from nightmill.core.upstream_report import ModelReport, UpstreamReport
from nightmill.errors import NightmillError
from nightmill.settings import Settings
from nightmill.store import Backlog
from nightmill.telemetry import UpstreamHeld

__all__ = ["NightmillError", "Settings", "command_line"]


def application() -> FastAPI:
    """The API without a store: good for its description, not for requests."""
    nothing = cast("Any", None)
    return create_app(
        ApiContext(
            store=nothing,
            blobs=nothing,
            parts=nothing,
            settings=Settings(),
            notify=nothing,
            upstream_models=nothing,
            clock=nothing,
            random=nothing,
        )
    )


def openapi_document() -> dict[str, Any]:
    return application().openapi()


def metrics_text() -> str:
    counts = ProcessCounts()
    counts.of_upstream("default")
    stored = api_metrics.StoreReading(
        query_s=0.0,
        backlog=Backlog(batches={}, waiting_segments=0, leased_segments=0),
        counts=counts,
        upstreams=[UpstreamReport("default", 0.0, per_model=(ModelReport("m", limit=64, rule="grow"),))],
        workers={"default": 1},
    )
    held = UpstreamHeld("default", "m", "it answers 503", since=0.0, until=0.0)
    reading = api_metrics.Reading(at=0.0, stored=stored, held=[held], free_bytes=1 << 30)
    text, _ = api_metrics.printed(reading)
    return text.decode()


def exit_code_meanings() -> dict[int, str]:
    return {int(code): meaning for code, meaning in MEANINGS.items()}
