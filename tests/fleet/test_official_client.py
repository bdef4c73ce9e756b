"""The acceptance tests of the official client on a fleet, over Postgres and S3.

One API server and two worker hosts; no process shares a disk with another. Tests that start their own servers
for behaviour that does not depend on the store are left out.
"""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.acceptance import test_official_client as suite
from tests.acceptance.conftest import Server, _stub, jsonl, serving, until
from tests.fleet.conftest import Postgres
from tests.s3_server import S3Server

__all__ = ["jsonl"]
_ASKED = {"client", "server", "jsonl", "stubbed", "tmp_path", "endpoint", "purpose", "file_id"}

for _name, _test in vars(suite).items():
    if _name.startswith("test_") and set(inspect.signature(_test).parameters) <= _ASKED:
        globals()[_name] = _test


@contextmanager
def _fleet(folder: Path, environment: dict[str, str], *, worker_hosts: int) -> Iterator[Server]:
    with ExitStack() as stack, serving(folder, "--workers", "0", environment=environment) as server:
        for number in range(worker_hosts):
            log = folder / f"worker_host-{number}.log"
            own = {"NIGHTMILL_FOLDER": str(folder / f"worker_host-{number}")}
            with log.open("wb") as sink:
                worker_host = subprocess.Popen(
                    [sys.executable, "-m", "nightmill", "work"],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=os.environ | environment | own,
                )
            stack.callback(_end, worker_host, log)
            until(lambda log=log: "nightmill works" in log.read_text())
        yield server


def _end(worker_host: "subprocess.Popen[bytes]", log: Path) -> None:
    worker_host.terminate()
    assert worker_host.wait(timeout=60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def storage_environment(postgres: Postgres, s3_server: S3Server) -> dict[str, str]:
    environment = {
        "NIGHTMILL_STORE": postgres.fresh(),
        "NIGHTMILL_WORKER__BEAT_S": "0.25",
        "NIGHTMILL_RETENTION__SWEEP_S": "0.5",
        "NIGHTMILL_BLOBS__PART_INTERVAL_S": "0.1",
    }
    for name, value in s3_server.settings(s3_server.make_bucket()).items():
        environment[f"NIGHTMILL_BLOBS__{name.upper()}"] = str(value)
    return environment


@pytest.fixture(scope="session")
def server(storage_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fleet")
    port = folder / "port"
    emulator = subprocess.Popen(
        [sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port-file", str(port)],
        stdin=subprocess.PIPE,
    )
    assert emulator.stdin is not None
    try:
        until(port.exists)
        url = f"http://127.0.0.1:{port.read_text().strip()}/v1"
        with _fleet(
            folder, storage_environment | {"NIGHTMILL_UPSTREAM__URL": url}, worker_hosts=2
        ) as running:
            yield running
    finally:
        emulator.stdin.close()
        emulator.wait(timeout=30)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


@pytest.fixture
def stubbed(
    postgres: Postgres, storage_environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[Server, Any]]:
    with _stub() as stub:
        own = {"NIGHTMILL_STORE": postgres.fresh(), "NIGHTMILL_UPSTREAM__URL": stub.url}
        environment = storage_environment | own | {"NIGHTMILL_UPSTREAM__CONCURRENCY": "2"}
        with _fleet(tmp_path, environment, worker_hosts=2) as running:
            yield running, stub
