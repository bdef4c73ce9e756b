"""A whole batch over each kind of object store, chosen by settings."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.conftest import Fleet, begin, each_once, ended

LINES = 120


def _gcs(request: pytest.FixtureRequest) -> dict[str, Any]:
    server = request.getfixturevalue("gcs")
    return server.settings(server.make_bucket())


def _azure(request: pytest.FixtureRequest) -> dict[str, Any]:
    server = request.getfixturevalue("azure")
    return server.settings(server.make_container())


def _rgw(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue("rgw").settings()


KINDS: dict[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {"gs": _gcs}
if os.environ.get("TEST_FLEET"):
    KINDS |= {"az": _azure, "s3": _rgw}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_runs_on_the_object_store_from_upload_to_download(kind: str, request, fleet: Fleet) -> None:
    for name, value in KINDS[kind](request).items():
        fleet.environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(value)
    fleet.environment["NIGHTMILL_BLOBS__PART_INTERVAL_S"] = "0.1"
    server = fleet.serve("--emulate", "--workers", "1")
    client = server.client()
    batch = ended(client, begin(client, LINES).id)
    assert batch.status == "completed"
    each_once(client, batch, LINES)
    assert fleet.environment["NIGHTMILL_BLOBS__URL"].startswith(f"{kind}://")
    assert server.end() == 0, server.said
    assert "Traceback" not in server.said
    assert not (fleet.folder / "data" / "blobs").exists()
