"""An API server or a crew of the fleet: a process group behind links of its own.

Promise: it is started again whenever it is down, as systemd or Kubernetes would. Not its duty: who is struck.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

from nightmill.errors import UnavailableError
from nightmill.torture.fleet.places import Links
from nightmill.torture.fleet.plan import FleetPlan
from nightmill.torture.plan import Target
from nightmill.torture.proof import Proof
from nightmill.torture.server import Server

ENDED_BY_ITSELF: Final = "processes that ended by themselves"
_LOOK_S = 0.05
_PAUSE_S = 0.3


_UP = (b"nightmill listens", b"nightmill works")


class Member:
    """`port` is 0 for a crew."""

    def __init__(self, name: str, process: Server, links: Links, *, log: Path, port: int = 0) -> None:
        self.name = name
        self.process = process
        self.links = links
        self.port = port
        self._log = log
        self._is_struck = False
        self._down_s = 0.0
        self._said_before = 0

    @property
    def is_up(self) -> bool:
        """Whether it has said so since its latest start."""
        with self._log.open("rb") as log:
            log.seek(self._said_before)
            said = log.read()
        return self.process.is_alive and any(words in said for words in _UP)

    async def keep(self, proof: Proof) -> None:
        """Starts it, again and again."""
        while True:
            self._said_before = self._log.stat().st_size if self._log.exists() else 0
            self.process.start()
            self._is_struck = False
            while self.process.is_alive:
                await asyncio.sleep(_LOOK_S)
            code = self.process.exit_code
            if self._is_struck:
                await asyncio.sleep(self._down_s)
            elif code == UnavailableError.exit_code:  # it was started while Postgres or the bucket was away
                await asyncio.sleep(_PAUSE_S)
            else:
                proof.breach(ENDED_BY_ITSELF, f"{self.name} ended with {code}; see {self._log.name}")
                await asyncio.sleep(_PAUSE_S)

    async def kill(self, target: Target, *, down_s: float) -> bool:
        """Whether there was anyone to kill. What ends of it stays down for so long."""
        if target in (Target.ALL, Target.API):
            self._is_struck, self._down_s = True, down_s
        return await self.process.kill(target)

    def freeze(self, target: Target) -> list[int]:
        return self.process.freeze(target)


def serve_command(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "nightmill", "serve", "--workers", "0", "--port", str(port)),
        *("--window", "24h", "--window", "2s"),
    ]


def work_command(plan: FleetPlan, *, upstream: str) -> list[str]:
    return [
        *(sys.executable, "-m", "nightmill", "work", "--upstream", upstream),
        *("--workers", str(plan.workers_per_crew), "--concurrency", str(plan.concurrency)),
    ]
