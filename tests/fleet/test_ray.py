"""Workers on a Ray cluster: real nodes (processes of this machine), a real Postgres, and complete batches."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import nightmill
from tests.fleet.conftest import begin, each_once, ended, until
from tests.slow import only_fleet

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
        (self.port,) = free_ports(1)
        self.added = 0
        self.log = folder / "ray.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nightmill_torture.ray_nodes", str(self.port), "2"],
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
        reply = self.process.stdout.readline().strip()
        assert reply and not reply.startswith("!"), (order, reply, self.log.read_text())
        return reply

    def add(self) -> None:
        self.tell(f"add {self.added}")
        self.added += 1

    def workers(self) -> list[int]:
        """Process ids of the actors that run workers."""
        return self.having("ray::WorkerActor")

    def having(self, word: str) -> list[int]:
        """Process ids of the processes of the cluster whose command contains `word`."""
        return [pid for pid in below(self.process.pid) if word in command(pid)]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def running_cluster(folder: Path, *, nodes: int = 2) -> Iterator[RayCluster]:
    made = RayCluster(folder)
    try:
        made.tell("head")
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if find_spec("ray") is None:
        pytest.skip("the extra 'ray' is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="nightmill-ray-") as folder,
        running_cluster(Path(folder)) as made,
    ):
        yield made


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


SLOW = pytest.mark.skipif("not os.environ.get('TEST_FLEET')", reason="make test-fleet runs it")
ONE = {"NIGHTMILL_RAY__MAX_WORKERS": "1"}


def node_of(cluster, pid):
    """The number of the node that runs the process."""
    return next(number for number in range(cluster.added) if str(pid) in cluster.tell(f"pids {number}"))


def seconds_until_recovery(source, *, since):
    """Seconds from `since` until the next upstream request. A worker without its actor ends within 1 s."""
    time.sleep(max(0.0, since + 1.5 - time.monotonic()))
    before = sum(source.requests().values())
    until(lambda: sum(source.requests().values()) > before, timeout_s=150)
    return time.monotonic() - since


def tell(what, seconds):
    sys.stderr.write(f"\nrecovery after {what}: {seconds:.1f} s\n")


@only_fleet
def test_a_batch_is_complete_when_a_worker_on_the_cluster_is_killed(on_ray, cluster, upstream):
    source = upstream(delay_s=0.1)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "8")
    client = server.client()
    made = begin(client, LINES)
    until(lambda: len(source.requests()) > 10)
    workers = until(cluster.workers)
    os.kill(workers[0], signal.SIGKILL)
    batch = ended(client, made.id)
    each_once(client, batch, LINES)
    assert sum(source.requests().values()) <= LINES + 8, "more lines were repeated than were in flight"
    assert server.end() == 0, server.said
    assert "Traceback" not in server.said
    until(lambda: not cluster.workers())


@SLOW
def test_an_actor_that_is_killed_is_restarted_by_ray(on_ray, cluster, upstream):
    source = upstream(delay_s=0.2)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "4", environment=ONE)
    made = begin(server.client(), 2 * LINES)
    until(lambda: len(source.requests()) > 10)
    (worker,) = cluster.workers()
    os.kill(worker, signal.SIGKILL)
    tell("the only worker actor was killed", seconds_until_recovery(source, since=time.monotonic()))
    assert cluster.workers() != [worker]
    each_once(server.client(), ended(server.client(), made.id), 2 * LINES)
    assert server.end() == 0, server.said


@SLOW
@pytest.mark.timeout(240)
def test_no_line_is_lost_when_a_node_is_killed(on_ray, cluster, upstream):
    source = upstream(delay_s=0.2)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "4", environment=ONE)
    made = begin(server.client(), 2 * LINES)
    until(lambda: len(source.requests()) > 10)
    (worker,) = cluster.workers()
    cluster.tell(f"kill {node_of(cluster, worker)}")
    tell("the only worker's node was killed", seconds_until_recovery(source, since=time.monotonic()))
    each_once(server.client(), ended(server.client(), made.id), 2 * LINES)
    assert server.end() == 0, server.said
    cluster.add()


@SLOW
@pytest.mark.timeout(240)
def test_no_line_is_lost_or_duplicated_when_a_node_freezes_and_resumes_late(on_ray, cluster, upstream):
    source = upstream(delay_s=0.2)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "4", environment=ONE)
    made = begin(server.client(), 2 * LINES)
    until(lambda: len(source.requests()) > 10)
    (worker,) = cluster.workers()
    frozen = node_of(cluster, worker)
    cluster.tell(f"freeze {frozen}")
    try:
        tell("the only worker's node froze", seconds_until_recovery(source, since=time.monotonic()))
        batch = ended(server.client(), made.id)
    finally:
        cluster.tell(f"thaw {frozen}")
    each_once(server.client(), batch, 2 * LINES)
    time.sleep(3)
    each_once(server.client(), server.client().batches.retrieve(made.id), 2 * LINES)
    assert server.end() == 0, server.said


@SLOW
def test_workers_start_when_there_is_work_and_stop_when_there_is_none(on_ray, cluster, upstream):
    source = upstream(delay_s=0.1)
    server = on_ray.serve("--upstream", source.url, "--concurrency", "8")
    assert not cluster.workers()
    began = time.monotonic()
    made = begin(server.client(), 3 * LINES)
    until(source.requests)
    tell("nothing, the first line of an idle cluster was sent", time.monotonic() - began)
    until(lambda: len(cluster.workers()) >= 3)
    assert on_ray.sql("SELECT count(DISTINCT worker_id) FROM segment WHERE state = 'leased'") != "0"
    each_once(server.client(), ended(server.client(), made.id), 3 * LINES)
    began = time.monotonic()
    until(lambda: not cluster.workers())
    tell("the end of the work, the last worker was gone", time.monotonic() - began)
    assert server.end() == 0, server.said


@SLOW
def test_stopping_the_server_drains_the_workers_and_repeats_no_line(on_ray, cluster, upstream):
    source = upstream(delay_s=0.2)
    flags = ("--upstream", source.url, "--concurrency", "8")
    server = on_ray.serve(*flags)
    made = begin(server.client(), 2 * LINES)
    until(lambda: len(source.requests()) > 10)
    assert server.end() == 0, server.said
    until(lambda: not cluster.workers())
    assert on_ray.sql("SELECT count(*) FROM segment WHERE state = 'leased'") == "0"
    server = on_ray.serve(*flags)
    each_once(server.client(), ended(server.client(), made.id), 2 * LINES)
    assert max(source.requests().values()) == 1
    assert server.end() == 0, server.said


@SLOW
def test_workers_continue_without_a_launcher_and_stop_when_no_server_attends_them(on_ray, cluster, upstream):
    source = upstream(delay_s=0.2)
    flags = ("--upstream", source.url, "--concurrency", "8")
    server = on_ray.serve(*flags)
    keeper = on_ray.work("--roles", "intake,finalizer,maintenance")
    made = begin(server.client(), 2 * LINES)
    until(lambda: len(source.requests()) > 10)
    (launcher,) = [pid for pid in server.group() if "nightmill.runtime.child launcher" in command(pid)]
    workers = cluster.workers()
    os.kill(launcher, signal.SIGKILL)
    until(lambda: "the launcher process ended" in server.said)
    assert cluster.workers() == workers
    server.kill()
    assert cluster.workers() == workers
    api = on_ray.serve("--workers", "0")
    each_once(api.client(), ended(api.client(), made.id), 2 * LINES)
    assert max(source.requests().values()) == 1
    until(lambda: not cluster.workers())
    assert keeper.end() == 0


@SLOW
def test_two_servers_share_their_workers_and_a_local_worker_host_helps(on_ray, cluster, upstream):
    source = upstream(delay_s=0.4)
    flags = ("--upstream", source.url, "--concurrency", "8")
    first, second = (on_ray.serve(*flags, environment=ONE) for _ in range(2))
    made = begin(first.client(), 5 * LINES)
    until(lambda: len(source.requests()) > 10)
    worker_host = on_ray.work(*flags, environment={"NIGHTMILL_ENGINE": "local"})
    holders = "SELECT count(DISTINCT worker_id) FROM segment WHERE state = 'leased'"
    until(lambda: on_ray.sql(holders) == "2", pause_s=0.1)
    (worker,) = cluster.workers()
    assert first.end() == 0, first.said
    assert cluster.workers() == [worker], "the second server still attends the worker"
    each_once(second.client(), ended(second.client(), made.id), 5 * LINES)
    assert max(source.requests().values()) == 1
    assert second.end() == 0, second.said
    until(lambda: not cluster.workers())
    assert worker_host.end() == 0


@SLOW
def test_a_cluster_is_reached_through_the_ray_client(on_ray, cluster, upstream):
    source = upstream(delay_s=0.05)
    (port,) = free_ports(1)
    cluster.tell(f"client {port}")
    server = on_ray.serve("--upstream", source.url, "--ray-address", f"ray://127.0.0.1:{port}")
    made = begin(server.client(), LINES)
    each_once(server.client(), ended(server.client(), made.id), LINES)
    assert server.end() == 0, server.said
    until(lambda: not cluster.workers())


@SLOW
@pytest.mark.timeout(300)
def test_the_server_reconnects_to_a_new_head_at_the_same_address(on_ray, upstream, tmp_path):
    source = upstream(delay_s=0.2)
    with running_cluster(tmp_path, nodes=1) as cluster:
        on_ray.environment["NIGHTMILL_RAY__ADDRESS"] = cluster.address
        server = on_ray.serve("--upstream", source.url, "--concurrency", "4", environment=ONE)
        made = begin(server.client(), 4 * LINES)
        until(lambda: len(source.requests()) > 10)
        cluster.tell("kill-head")
        cluster.tell("kill 0")
        until(lambda: "no Ray cluster answers" in server.said, timeout_s=90)
        began = time.monotonic()
        cluster.tell("head")
        cluster.add()
        tell("a new head and a node were up", seconds_until_recovery(source, since=time.monotonic()))
        tell("a new head was begun", time.monotonic() - began)
        each_once(server.client(), ended(server.client(), made.id), 4 * LINES)
        assert server.end() == 0, server.said


@SLOW
@pytest.mark.timeout(300)
def test_workers_continue_when_the_head_of_the_cluster_is_killed(on_ray, upstream, tmp_path):
    source = upstream(delay_s=0.2)
    with running_cluster(tmp_path, nodes=1) as cluster:
        on_ray.environment["NIGHTMILL_RAY__ADDRESS"] = cluster.address
        server = on_ray.serve("--upstream", source.url, "--concurrency", "8", environment=ONE)
        made = begin(server.client(), LINES)
        until(lambda: len(source.requests()) > 10)
        cluster.tell("kill-head")
        each_once(server.client(), ended(server.client(), made.id), LINES)
        assert max(source.requests().values()) == 1
        assert server.end() == 0, server.said


@SLOW
@pytest.mark.timeout(300)
def test_a_model_runs_while_batches_need_it_and_is_replaced_when_it_dies(on_ray, cluster, tmp_path):
    pytest.importorskip("xllamacpp")
    gguf = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, Path(__file__).parents[1] / "tiny_gguf.py", gguf], check=True)
    (port,) = free_ports(1)
    model = {
        "NIGHTMILL_RAY__MODEL__NAME": "m",
        "NIGHTMILL_RAY__MODEL__SOURCE": str(gguf),
        "NIGHTMILL_RAY__MODEL__ENGINE": "llama.cpp",
        "NIGHTMILL_RAY__MODEL__CPUS": "0.5",
        "NIGHTMILL_RAY__MODEL__OPTIONS__THREADS": "1",
        "NIGHTMILL_RAY__MODEL__PORT": str(port),
        "NIGHTMILL_RAY__MODEL__HOST": "127.0.0.1",
        "NIGHTMILL_RAY__MODEL__IDLE_S": "5",
    }
    server = on_ray.serve("--concurrency", "4", environment=ONE | model)
    client = server.client()
    assert [offered.id for offered in client.models.list()] == ["m"]
    assert not cluster.having("runtime.child llama")
    began = time.monotonic()
    made = begin(client, 4, max_tokens=4)
    each_once(client, ended(client, made.id, timeout_s=120), 4)
    tell("nothing, a first batch of a model that was not there was done", time.monotonic() - began)
    (model_process,) = cluster.having("runtime.child llama")

    made = begin(client, 60, max_tokens=64)
    until(lambda: client.batches.retrieve(made.id).request_counts.completed > 5)
    os.kill(model_process, signal.SIGKILL)
    killed = time.monotonic()
    until(
        lambda: [pid for pid in cluster.having("runtime.child llama") if pid != model_process], timeout_s=120
    )
    tell("the model was killed, another was there", time.monotonic() - killed)
    batch = ended(client, made.id, timeout_s=120)
    each_once(client, batch, 60)
    assert batch.request_counts.failed == 0

    until(lambda: not cluster.workers())
    assert cluster.having("runtime.child llama"), "workers end before the model"
    until(lambda: not cluster.having("runtime.child llama"))
    assert server.end() == 0, server.said


@SLOW
def test_the_autoscaler_receives_the_needed_resources_and_their_release(on_ray, cluster, upstream):
    source = upstream(delay_s=0.1)
    flags = ("--upstream", source.url, "--concurrency", "8")
    server = on_ray.serve(*flags, environment={"NIGHTMILL_RAY__MAX_WORKERS": "2"})
    until(lambda: json.loads(cluster.tell("asked-for")) == [])
    made = begin(server.client(), LINES)
    until(lambda: json.loads(cluster.tell("asked-for")) == [{"CPU": 1.0}] * 2)
    each_once(server.client(), ended(server.client(), made.id), LINES)
    until(lambda: json.loads(cluster.tell("asked-for")) == [])
    assert server.end() == 0, server.said


def configured(folder, runtime_env, **ray):
    """Writes a TOML file, because settings in the environment cannot contain names in capitals."""
    lines = ["[ray]", *(f"{name} = {json.dumps(value)}" for name, value in ray.items())]
    lines += ["[ray.runtime_env.env_vars]", *(f"{name} = {json.dumps(v)}" for name, v in runtime_env.items())]
    path = folder / "nightmill.toml"
    path.write_text("\n".join(lines))
    return {"NIGHTMILL_CONFIG": str(path)}


@SLOW
def test_nodes_may_have_their_own_secrets(on_ray, cluster, upstream, tmp_path):
    source = upstream(delay_s=0.05)
    config = configured(tmp_path, {"NIGHTMILL_STORE": on_ray.store}, secrets="on_nodes")
    server = on_ray.serve("--upstream", source.url, environment=ONE | config)
    made = begin(server.client(), LINES)
    each_once(server.client(), ended(server.client(), made.id), LINES)
    assert server.end() == 0, server.said


@SLOW
@pytest.mark.parametrize(
    ("version", "message"),
    [("0.0.9", "has nightmill 0.0.9, this process has"), (None, "No module named 'nightmill.")],
)
def test_a_node_with_another_version_of_nightmill_is_reported(
    on_ray, cluster, upstream, tmp_path, version, message
):
    other = tmp_path / "other" / "nightmill"
    if version is None:
        other.mkdir(parents=True)
        (other / "__init__.py").touch()
    else:
        shutil.copytree(Path(nightmill.__file__).parent, other)
        start = other / "__init__.py"
        start.write_text(start.read_text().replace(nightmill.__version__, version))
    config = configured(tmp_path, {"PYTHONPATH": str(other.parent)})
    server = on_ray.serve("--upstream", upstream().url, environment=ONE | config)
    begin(server.client(), LINES)
    until(lambda: message in server.said)
    until(lambda: message in json.dumps(ready(server)))
    assert server.end() == 0, server.said


@SLOW
def test_what_a_worker_on_the_cluster_holds_is_in_ready(on_ray, cluster):
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        server = on_ray.serve("--upstream", f"http://127.0.0.1:{taken.getsockname()[1]}/v1", environment=ONE)
        begin(server.client(), LINES)
        until(lambda: "held" in (ready(server) or {}))
        [held] = ready(server)["held"]
        assert held["reason"] == "connection refused"
        assert "is held since" in ready(server)["trouble"]
        assert server.end() == 0, server.said


def ready(server):
    with contextlib.suppress(urllib.error.HTTPError):
        return json.load(urllib.request.urlopen(f"{server.url}/ready", timeout=10))


@SLOW
def test_a_local_cluster_starts_and_stops_with_the_server(fleet, upstream):
    source = upstream(delay_s=0.1)
    server = fleet.serve("--engine", "ray", "--upstream", source.url, "--concurrency", "8")
    made = begin(server.client(), LINES)
    until(lambda: len(source.requests()) > 10)
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    group = set(server.group())
    open_ports = [line for line in listening.splitlines() if any(f"pid={pid}," in line for pid in group)]
    assert open_ports
    assert all("127.0.0.1" in line.split()[3] or "[::1]" in line.split()[3] for line in open_ports), (
        open_ports
    )
    each_once(server.client(), ended(server.client(), made.id), LINES)
    assert server.end() == 0, server.said
    until(lambda: not any(command(pid) for pid in group))


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("serve", "--emulate"), {"NIGHTMILL_STORE": "sqlite:////tmp/x.sqlite"}, "every node reaches"),
        (("serve", "--emulate"), {"NIGHTMILL_RAY__ADDRESS": "ray://nowhere:1"}, "are of this machine"),
        (("work", "--emulate"), {"NIGHTMILL_RAY__MIN_WORKERS": "9"}, "is more than ray.max_workers"),
        (("serve",), {}, "no upstream"),
    ],
)
def test_a_configuration_that_ray_cannot_run_gives_a_one_line_error(fleet, words, environment, message):
    refused = fleet.start(*words, "--engine", "ray", environment=environment)
    assert refused.process.wait(timeout=30) == 78
    assert message in refused.said.splitlines()[0]
    assert "Traceback" not in refused.said


def test_an_unreachable_cluster_is_reported_and_the_api_answers(on_ray, upstream):
    on_ray.environment["NIGHTMILL_RAY__ADDRESS"] = "ray://127.0.0.1:1"
    server = on_ray.serve("--upstream", upstream().url)
    assert list(server.client().batches.list()) == []
    until(lambda: "no Ray cluster answers at ray://127.0.0.1:1" in server.said)
    assert server.end() == 0, server.said
