"""A Ray cluster of several nodes on this machine: `python -m nightmill_torture.ray_nodes PORT CPUS`.

Each line of standard input is a command and is answered with one line on standard output: `head` (a new,
empty cluster on that port), `add NAME` (a node with CPUS), `kill NAME`, `freeze NAME`, `thaw NAME`,
`kill-head`, `workers NAME` (process ids of nightmill's workers), `pids NAME`, `client PORT` (a server for
`ray://`), `asked-for` (the latest request to the autoscaler). An answer that begins with `!` is an error. All
of Ray ends with this process, which ends at the end of standard input.
"""

import importlib
import os
import signal
import subprocess
import sys
from typing import Any

from nightmill_torture.processes import command_of, send_signal, with_children

_WORKER = "nightmill.runtime.child roles"
_NODE: dict[str, Any] = {
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
    "include_log_monitor": False,
}


class RayNodes:
    """The nodes of a Ray cluster on this machine, each a process group of its own.

    Args:
        port: of the head.
        cpus: of each other node. The head has none, so that no worker runs there.
    """

    def __init__(self, port: int, *, cpus: int) -> None:
        self._port = port
        self._cpus = cpus
        self._cluster: Any = None
        self._nodes: dict[str, Any] = {}

    def head(self) -> str:
        for name in list(self._nodes):
            self.kill(name)  # a node of an earlier cluster
        arguments = {"num_cpus": 0, "no_monitor": True, "gcs_server_port": self._port, **_NODE}
        cluster_utils = importlib.import_module("ray.cluster_utils")
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=arguments)
        return str(self._cluster.address)

    def add(self, name: str) -> str:
        self._nodes[name] = self._cluster.add_node(num_cpus=self._cpus, **_NODE)
        return name

    def kill(self, name: str) -> str:
        """Kills all processes of the node at once, like a loss of power."""
        node = self._nodes.pop(name)
        send_signal(signal.SIGSTOP, _processes_of(node))
        send_signal(signal.SIGKILL, _processes_of(node))
        return name

    def freeze(self, name: str) -> str:
        send_signal(signal.SIGSTOP, _processes_of(self._nodes[name]))
        return name

    def thaw(self, name: str) -> str:
        send_signal(signal.SIGCONT, _processes_of(self._nodes[name]))
        return name

    def kill_head(self) -> str:
        send_signal(signal.SIGKILL, _processes_of(self._cluster.head_node))
        return "head"

    def workers(self, name: str) -> str:
        pids = self.pids(name).split()
        return " ".join(pid for pid in pids if pid.isdecimal() and _WORKER in command_of(int(pid))) or "none"

    def pids(self, name: str) -> str:
        """Process ids on the node; `none` when the node is down."""
        pids = _processes_of(self._nodes[name]) if name in self._nodes else []
        return " ".join(map(str, pids)) or "none"

    def client(self, port: str) -> str:
        """Starts the server that takes `ray://` connections."""
        utils = importlib.import_module("ray._private.utils")
        program = [sys.executable, "-m", "ray.util.client.server", "--host", "127.0.0.1", "--port", port]
        subprocess.Popen(
            [*program, "--mode", "proxy", "--address", f"127.0.0.1:{self._port}"],
            preexec_fn=utils.set_kill_on_parent_death_linux,  # noqa: PLW1509 - no other way to set it
        )
        return port

    def asked_for(self) -> str:
        """The resources that were last requested of the autoscaler, as JSON."""
        channel = importlib.import_module("ray._private.ray_constants").AUTOSCALER_RESOURCE_REQUEST_CHANNEL
        store = importlib.import_module("ray._raylet").GcsClient(address=f"127.0.0.1:{self._port}")
        found = store.internal_kv_get(channel, namespace=None)
        return "null" if found is None else found.decode()


def _processes_of(node: Any) -> list[int]:
    return with_children([info.process.pid for infos in node.all_processes.values() for info in infos])


def main() -> None:
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for: loopback only
        "RAY_raylet_start_wait_time_s": "120",  # for a busy machine
    }
    port, cpus = map(int, sys.argv[1:3])
    nodes = RayNodes(port, cpus=cpus)
    # Ray writes to standard output, which carries the answers.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        verb, *words = line.split()
        try:
            out.write(f"{getattr(nodes, verb.replace('-', '_'))(*words)}\n")
        except Exception as error:  # noqa: BLE001 - any error is an answer
            out.write(f"! {error!r}\n")
    os._exit(0)  # ends all of Ray with this process


if __name__ == "__main__":
    main()
