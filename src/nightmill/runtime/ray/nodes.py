"""A Ray cluster of several nodes on this machine, to be struck: `python -m nightmill.runtime.ray.nodes PORT`.

Each line of its input is an order, and is answered with one line: `head` (a new, empty cluster on that port),
`add NAME` (a node), `kill NAME`, `freeze NAME`, `thaw NAME`, `kill-head`, `workers NAME` (process ids). An
answer that begins with `!` says what went wrong. Promise: at the end of its input, and however this process
ends, all of Ray ends with it. Not its duty: a cluster that is used for anything but trying it out.
"""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_WORKS = "nightmill.runtime.child_main"
_NODE: dict[str, Any] = {
    "object_store_memory": 80 << 20,
    "include_dashboard": False,
    "include_log_monitor": False,
}


class Nodes:
    """Args:
    port: of the head.
    cpus: of each other node; the head has none, so that no worker lives there.
    """

    def __init__(self, port: int, *, cpus: int) -> None:
        self._port = port
        self._cpus = cpus
        self._cluster: Any = None
        self._nodes: dict[str, Any] = {}

    def head(self) -> str:
        for name in list(self._nodes):
            self.kill(name)  # it is of the cluster before
        cluster_utils = importlib.import_module("ray.cluster_utils")
        self._cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "gcs_server_port": self._port, **_NODE}
        )
        return str(self._cluster.address)

    def add(self, name: str) -> str:
        self._nodes[name] = self._cluster.add_node(num_cpus=self._cpus, **_NODE)
        return name

    def kill(self, name: str) -> str:
        """As a machine that loses power."""
        node = self._nodes.pop(name)
        _send(signal.SIGSTOP, _of(node))
        _send(signal.SIGKILL, _of(node))
        return name

    def freeze(self, name: str) -> str:
        _send(signal.SIGSTOP, _of(self._nodes[name]))
        return name

    def thaw(self, name: str) -> str:
        _send(signal.SIGCONT, _of(self._nodes[name]))
        return name

    def kill_head(self) -> str:
        _send(signal.SIGKILL, _of(self._cluster.head_node))
        return "head"

    def workers(self, name: str) -> str:
        """Process ids of nightmill's workers there; none when the node is down."""
        if name not in self._nodes:
            return "none"
        pids = [pid for pid in _of(self._nodes[name]) if _WORKS in _command(pid)]
        return " ".join(map(str, pids)) or "none"


def _of(node: Any) -> list[int]:
    """Its processes and all their children."""
    found: list[int] = [info.process.pid for infos in node.all_processes.values() for info in infos]
    for pid in found:
        for children in (_PROC / str(pid) / "task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.extend(map(int, children.read_text().split()))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (_PROC / str(pid) / "cmdline").read_text().replace("\0", " ")
    return ""


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: stay on loopback
    }
    port, cpus = map(int, sys.argv[1:3])
    nodes = Nodes(port, cpus=cpus)
    # Ray writes to standard output as it likes.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        verb, *words = line.split()
        try:
            out.write(f"{getattr(nodes, verb.replace('-', '_'))(*words)}\n")
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked is told
            out.write(f"! {error!r}\n")
    os._exit(0)  # and with this process all of Ray


if __name__ == "__main__":
    main()
