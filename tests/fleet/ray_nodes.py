"""A Ray cluster of several nodes on this machine, as a program: `python tests/fleet/ray_nodes.py PORT`.

Each line of its input is an order and is answered with one line: `head`, `add` (a node; its number comes
back), `kill NUMBER`, `freeze NUMBER`, `thaw NUMBER`, `kill-head`, `client PORT`. At the end of its input
everything ends: the kernel ends every process of Ray with this one, however it ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on loopback
    "RAY_raylet_start_wait_time_s": "120",  # on a machine that does other work, too
}

from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._private.utils import set_kill_on_parent_death_linux
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

_SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False}


def below(pid: int) -> list[int]:
    """The process and all its children."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.extend(map(int, task.read_text().split()))
    return found


class Nodes:
    def __init__(self, port: int) -> None:
        self._port = port
        self._cluster: Cluster | None = None
        self._nodes: dict[int, Any] = {}

    def head(self) -> str:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "no_monitor": True, "gcs_server_port": self._port, **_SMALL},
        )
        return str(self._cluster.address)

    def asked_for(self) -> str:
        """What the autoscaler was last told must fit."""
        found = GcsClient(address=f"127.0.0.1:{self._port}").internal_kv_get(
            AUTOSCALER_RESOURCE_REQUEST_CHANNEL, namespace=None
        )
        return "null" if found is None else found.decode()

    def add(self, cpus: str = "2") -> str:
        assert self._cluster is not None
        number = len(self._nodes)
        self._nodes[number] = self._cluster.add_node(
            num_cpus=int(cpus), resources={f"node{number}": 1}, **_SMALL
        )
        return str(number)

    def client(self, port: str) -> str:
        """The server that takes `ray://` connections."""
        program = [sys.executable, "-m", "ray.util.client.server", "--host", "127.0.0.1", "--port", port]
        subprocess.Popen(
            [*program, "--mode", "proxy", "--address", f"127.0.0.1:{self._port}"],
            preexec_fn=set_kill_on_parent_death_linux,  # noqa: PLW1509 - no other way to say it
        )
        return port

    def kill(self, number: str) -> str:
        """As a machine that loses power."""
        for pid in self._of(number):
            os.kill(pid, signal.SIGSTOP)
        for pid in self._of(number):
            os.kill(pid, signal.SIGKILL)
        return "killed"

    def freeze(self, number: str) -> str:
        for pid in self._of(number):
            os.kill(pid, signal.SIGSTOP)
        return "frozen"

    def thaw(self, number: str) -> str:
        for pid in self._of(number):
            os.kill(pid, signal.SIGCONT)
        return "thawed"

    def kill_head(self) -> str:
        assert self._cluster is not None
        for pid in self._pids(self._cluster.head_node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return "killed"

    def pids(self, number: str) -> str:
        return json.dumps(self._of(number))

    def _of(self, number: str) -> list[int]:
        return self._pids(self._nodes[int(number)])

    def _pids(self, node: Any) -> list[int]:
        started = [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [pid for one in started for pid in below(one)]


def main() -> None:
    nodes = Nodes(int(sys.argv[1]))
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        verb, *words = line.split()
        try:
            print(getattr(nodes, verb.replace("-", "_"))(*words), file=out)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            print(f"! {error!r}", file=out)
    os._exit(0)  # and with this thread all of Ray


if __name__ == "__main__":
    main()
