"""Workers on a Ray cluster: real nodes (processes of this machine), a real Postgres, batches that must be
whole."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fleet.conftest import begin, each_once, ended, until

LINES = 120


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def below(pid: int) -> list[int]:
    """The process and all its children."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.extend(map(int, task.read_text().split()))
    return found


def command(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


class RayCluster:
    def __init__(self, folder: Path) -> None:
        self.port, self.client_port = free_ports(2)
        self.log = folder / "ray.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    Path(__file__).with_name("ray_nodes.py"),
                    str(self.port),
                    str(self.client_port),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment,
                text=True,
                bufsize=1,
            )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tell(self, order: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        told = self.process.stdout.readline().strip()
        assert told and not told.startswith("!"), (order, told, self.log.read_text())
        return told

    def workers(self) -> list[int]:
        """Process ids of the actors that run workers."""
        return [pid for pid in below(self.process.pid) if "ray::WorkerActor" in command(pid)]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if find_spec("ray") is None:
        pytest.skip("the extra 'ray' is not installed")
    with tempfile.TemporaryDirectory(prefix="nightmill-ray-") as folder:
        made = RayCluster(Path(folder))
        try:
            made.tell("head")
            for _ in range(2):
                made.tell("add")
            yield made
        finally:
            made.end()


@pytest.fixture
def on_ray(fleet, cluster):
    fleet.environment |= {
        "NIGHTMILL_ENGINE": "ray",
        "NIGHTMILL_RAY__ADDRESS": cluster.address,
        "NIGHTMILL_RAY__NAMESPACE": fleet.store.rsplit("/", 1)[1],
        "NIGHTMILL_RAY__IDLE_S": "2",
        "NIGHTMILL_RAY__UNATTENDED_S": "20",
        "NIGHTMILL_RAY__SEGMENTS_PER_WORKER": "2",
        "NIGHTMILL_RAY__CPUS_PER_WORKER": "1",
    }
    return fleet


def test_a_batch_is_whole_when_a_worker_on_the_cluster_is_killed(on_ray, cluster, upstream):
    source = upstream(delay_s=0.1)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "8")
    client = server.client()
    made = begin(client, LINES)
    until(lambda: len(source.requests()) > 10)
    workers = until(cluster.workers)
    os.kill(workers[0], signal.SIGKILL)
    batch = ended(client, made.id)
    each_once(client, batch, LINES)
    assert sum(source.requests().values()) <= LINES + 8, "more was repeated than was in flight"
    assert server.end() == 0, server.said
    assert "Traceback" not in server.said
    assert not cluster.workers(), "a drained worker is gone"
