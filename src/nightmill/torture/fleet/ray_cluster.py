"""A Ray cluster of several nodes on this machine, beside the fleet.

Duty: start it, kill and freeze its nodes and its head, start them again. Promise: all of it ends with us. Not
its duty: what runs on it.
"""

import asyncio
import os
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

_MODULE: Final = "nightmill.runtime.ray.nodes"
_ORDER_S = 120.0


class RayCluster:
    """`nodes` names those that can be struck."""

    def __init__(self, process: asyncio.subprocess.Process, *, port: int, nodes: int, log: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self.nodes = [f"node-{number}" for number in range(1, nodes + 1)]
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """A new cluster; nodes of an earlier one are gone afterwards."""
        await self.tell("head")
        for name in self.nodes:
            await self.tell(f"add {name}")

    async def tell(self, order: str) -> str:
        """Raises SetupError when it can't be done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn, asyncio.timeout(_ORDER_S):
            self._process.stdin.write(f"{order}\n".encode())
            told = (await self._process.stdout.readline()).decode().strip()
        if not told or told.startswith("!"):
            raise SetupError(f"Ray did not take the order '{order}': {told[1:200]}; see {self._log}")
        return told

    async def strike_worker(self, number: signal.Signals, *, random: Random) -> list[int]:
        """Kills or freezes one of nightmill's workers; the id of its process, if there is any."""
        for name in random.sample(self.nodes, len(self.nodes)):
            workers = await self.tell(f"workers {name}")
            if workers != "none":
                victim = int(random.choice(workers.split()))
                try:
                    os.kill(victim, number)
                except ProcessLookupError:
                    continue
                return [victim]
        return []


@asynccontextmanager
async def ray_cluster(
    folder: Path, *, nodes: int, cpus: int, environment: Mapping[str, str]
) -> AsyncGenerator[RayCluster]:
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
