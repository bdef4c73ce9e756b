"""A Ray cluster of several nodes on this machine, for a run with workers on Ray.

Its nodes and its head can be killed, frozen and started again. All of the cluster ends with this process.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

from nightmill.errors import SetupError
from nightmill.runtime.supervisor import free_port
from nightmill_torture.processes import send_signal

_MODULE: Final = "nightmill_torture.ray_nodes"
_COMMAND_S = 300.0


class RayCluster:
    """`nodes` names the nodes besides the head."""

    def __init__(self, process: asyncio.subprocess.Process, *, port: int, nodes: int, log: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self.nodes = [f"node-{number}" for number in range(1, nodes + 1)]
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """A new, empty cluster in place of an earlier one."""
        await self.send("head")
        for name in self.nodes:
            await self.send(f"add {name}")

    async def send(self, command: str) -> str:
        """The answer to a command of `ray_nodes`.

        Raises:
            SetupError: the command failed, or has no answer in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with self._turn, asyncio.timeout(_COMMAND_S):
                self._process.stdin.write(f"{command}\n".encode())
                answer = (await self._process.stdout.readline()).decode().strip()
        except TimeoutError:
            answer = f"!no answer within {_COMMAND_S:.0f} s"
        if not answer or answer.startswith("!"):
            raise SetupError(f"the command '{command}' to Ray failed: {answer[1:200]}; see {self._log}")
        return answer

    async def signal_worker(self, number: signal.Signals, *, random: Random) -> list[int]:
        """Sends the signal to one of nightmill's workers; the id of its process, or none."""
        for name in random.sample(self.nodes, len(self.nodes)):
            workers = await self.send(f"workers {name}")
            if workers != "none" and (reached := send_signal(number, [int(random.choice(workers.split()))])):
                return reached
        return []


@asynccontextmanager
async def ray_cluster(
    folder: Path, *, nodes: int, cpus: int, environment: Mapping[str, str]
) -> AsyncGenerator[RayCluster]:
    """A running cluster; each node besides the head has room for `cpus` workers."""
    log, port = folder / "ray.log", free_port()
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _MODULE, str(port), str(cpus)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        cluster = RayCluster(process, port=port, nodes=nodes, log=log)
        await cluster.start()
        yield cluster
    finally:
        process.kill()
        await process.wait()
