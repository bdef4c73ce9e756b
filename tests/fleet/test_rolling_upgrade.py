"""An upgrade from this release to the next while the fleet works: no line lost or duplicated, and no error.

The next release is a copy of these sources with two made-up steps of the schema.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from nightmill.store.steps import SCHEMA_VERSION
from tests.fleet.conftest import Fleet, Process, begin, each_once, ended, until
from tests.slow import only_fleet
from tests.store.next_release import AFTER, BEFORE, make_next_release

ROOT = Path(__file__).resolve().parents[2]
LINES = 60


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that runs the next release."""
    folder = tmp_path_factory.mktemp("next")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    make_next_release(folder / "src" / "nightmill")
    return {"PYTHONPATH": str(folder / "src")}


def run_migration(fleet: Fleet, flag: str, environment: dict[str, str]) -> tuple[int, str]:
    migrating = fleet.start("migrate", flag, environment=environment)
    return migrating.process.wait(timeout=60), migrating.said


def start_both(
    fleet: Fleet, words: tuple[str, ...], environment: dict[str, str] | None
) -> tuple[Process, Process]:
    """Starts a server and a worker host at the same time."""
    worker_host = fleet.start("work", *words, environment=environment)
    server = fleet.serve("--workers", "0", environment=environment)
    until(lambda: "nightmill works" in worker_host.said)
    return server, worker_host


def version(fleet: Fleet) -> str:
    return fleet.sql("SELECT version_num FROM alembic_version")


@only_fleet
def test_a_fleet_is_upgraded_while_it_works(fleet, upstream, next_release):
    source = upstream(delay_s=0.1)
    words = ("--upstream", source.url, "--concurrency", "4")
    old_server, old_worker_host = start_both(fleet, words, None)
    assert version(fleet) == SCHEMA_VERSION
    made = begin(old_server.client(), LINES)
    until(lambda: len(source.requests()) > 5)

    assert run_migration(fleet, "--before", next_release)[0] == 0
    assert version(fleet) == BEFORE
    server, worker_host = start_both(fleet, words, next_release)
    code, said = run_migration(fleet, "--after", next_release)
    assert code == 78
    assert "connections of older nightmills are open" in said
    late = begin(old_server.client(), 5, name="late")
    for old in (old_worker_host, old_server):
        assert old.end() == 0, old.said
    assert run_migration(fleet, "--after", next_release)[0] == 0
    assert version(fleet) == AFTER

    each_once(server.client(), ended(server.client(), made.id), LINES)
    each_once(server.client(), ended(server.client(), late.id), 5, name="late")
    assert max(source.requests().values()) == 1
    assert fleet.sql("SELECT sum(batches), sum(requests), sum(completed) FROM usage") == "2|65|65"
    for process in (old_server, old_worker_host, server, worker_host):
        assert "Traceback" not in process.said


class Traffic:
    """A client that opens and polls one batch after another, on the servers that are in rotation."""

    def __init__(self, first: Process) -> None:
        self.rotation = [first]
        self.batches: list[str] = []
        self.asked = 0
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._pause = threading.Lock()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._flow)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=60)
            assert not thread.is_alive()

    def rotate(self, change: Callable[[list[Process]], None]) -> None:
        """Changes the rotation as a load balancer does: no request is in flight meanwhile."""
        with self._pause:
            change(self.rotation)

    def _flow(self) -> None:
        try:
            while not self._stop.is_set():
                with self._pause:
                    client = self.rotation[self.asked % len(self.rotation)].client()
                    self.asked += 1
                    if self.asked % 5 == 1:
                        name = f"b{len(self.batches)}"
                        self.batches.append(begin(client, LINES, name=name).id)
                    for batch_id in self.batches[-3:]:
                        assert client.batches.retrieve(batch_id).status != "failed"
                self._stop.wait(0.2)
        except (openai.APIError, AssertionError) as error:
            self.errors.append(error)


@pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="a minute of rolling: make test-fleet")
@pytest.mark.timeout(400)
def test_a_fleet_is_upgraded_rolled_back_and_upgraded_again_under_traffic(fleet, upstream, next_release):
    source = upstream(delay_s=0.05)
    words = ("--upstream", source.url, "--concurrency", "8")

    def server(environment: dict[str, str] | None) -> Process:
        return fleet.serve("--workers", "0", environment=environment)

    def worker_host(environment: dict[str, str] | None) -> Process:
        return fleet.work(*words, environment=environment)

    servers = [server(None), server(None)]
    worker_hosts = [worker_host(None), worker_host(None)]
    processes = [*servers, *worker_hosts]
    traffic = Traffic(servers[0])
    traffic.rotation.append(servers[1])

    def roll(environment: dict[str, str] | None) -> None:
        for index in range(2):
            new_worker_host, old_worker_host = worker_host(environment), worker_hosts[index]
            assert old_worker_host.end() == 0, old_worker_host.said
            new_server, old_server = server(environment), servers[index]
            traffic.rotate(lambda rotation, new=new_server: rotation.append(new))
            traffic.rotate(lambda rotation, old=old_server: rotation.remove(old))
            assert old_server.end() == 0, old_server.said
            worker_hosts[index], servers[index] = new_worker_host, new_server
            processes.extend((new_worker_host, new_server))
            before = len(traffic.batches)
            until(lambda before=before: traffic.errors or len(traffic.batches) > before + 1)

    with traffic.flowing():
        until(lambda: traffic.errors or len(traffic.batches) > 2)
        assert run_migration(fleet, "--before", next_release)[0] == 0
        roll(next_release)
        roll(None)
        assert run_migration(fleet, "--after", next_release)[0] == 78
        roll(next_release)
        assert run_migration(fleet, "--after", next_release)[0] == 0
        before = len(traffic.batches)
        until(lambda: traffic.errors or len(traffic.batches) > before + 2)
    assert not traffic.errors, traffic.errors
    client = servers[0].client()
    for number, batch_id in enumerate(traffic.batches):
        each_once(client, ended(client, batch_id), LINES, name=f"b{number}")
    assert max(source.requests().values()) == 1
    count = len(traffic.batches)
    counted = fleet.sql("SELECT sum(batches), sum(requests), sum(completed) FROM usage")
    assert counted == f"{count}|{count * LINES}|{count * LINES}"
    kept = "SELECT sum(size_bytes) FROM file WHERE deleted_at IS NULL"
    assert fleet.sql("SELECT sum(stored_bytes) FROM project") == fleet.sql(kept)
    refused = fleet.start("serve", "--workers", "0")
    assert refused.process.wait(timeout=30) == 78
    assert "newer than this nightmill knows" in refused.said
    for process in processes:
        assert "Traceback" not in process.said
