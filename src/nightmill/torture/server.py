"""`nightmill serve` in a process group of its own: start it, kill it or one of its processes, see who lives.

Duty: processes. Promise: `close` leaves none behind. Not its duty: when, and whether it answers.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from nightmill.torture.plan import Target

_PROC = Path("/proc")
_LOOK_S = 0.01
_MARKS = {Target.WORKER: "worker:", Target.KEEPER: "intake"}


@dataclass(frozen=True, slots=True)
class Process:
    process_id: int
    command: str


class Server:
    """Every process of one folder's server, over any number of starts.

    Args:
        command: starts it in the foreground.
        environment: all of it.
        log: a file that gets what it says.
    """

    def __init__(self, command: list[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self.started = 0.0
        """Monotonic time of the latest start."""

    @property
    def is_alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def start(self, **environment: str) -> None:
        with self._log.open("ab") as log:
            self.started = monotonic()
            self._child = subprocess.Popen(
                self._command,
                env={**self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._groups.add(self._child.pid)

    async def kill(self, target: Target) -> bool:
        """Whether there was anyone to kill. With ALL, nobody of any start lives on afterwards."""
        assert self._child is not None
        match target:
            case Target.ALL:
                was_alive = self.is_alive
                await self.kill_everyone()
                return was_alive
            case Target.API:
                was_alive = self.is_alive
                self._child.kill()
                self._child.wait()
                return was_alive
            case Target.WORKER | Target.KEEPER:
                for process in members({self._child.pid}):
                    if _MARKS[target] in process.command:
                        with suppress(ProcessLookupError):
                            os.kill(process.process_id, signal.SIGKILL)
                        return True
                return False

    def freeze(self, target: Target) -> list[int]:
        """Stops ALL of its processes, or one WORKER; the ids of those it stopped."""
        frozen: list[int] = []
        for process in self.processes:
            if target is Target.ALL or _MARKS[target] in process.command:
                with suppress(ProcessLookupError):
                    os.kill(process.process_id, signal.SIGSTOP)
                    frozen.append(process.process_id)
                if target is not Target.ALL:
                    break
        return frozen

    @staticmethod
    def thaw(process_ids: Iterable[int]) -> None:
        for process_id in process_ids:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGCONT)

    async def kill_everyone(self) -> None:
        """Orphans of earlier starts too."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        while members(self._groups):
            await asyncio.sleep(_LOOK_S)
        self._groups.clear()

    async def has_ended(self, *, within_s: float) -> int | None:
        """Its exit code, once it and all its children are gone; None if they are not."""
        assert self._child is not None
        try:
            async with asyncio.timeout(within_s):
                while self._child.poll() is None or members(self._groups):
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            return None
        return self._child.returncode

    def terminate(self) -> None:
        assert self._child is not None
        self._child.terminate()

    @property
    def processes(self) -> list[Process]:
        return members(self._groups)


def members(groups: set[int]) -> list[Process]:
    """Living processes of the groups; one that waits to be reaped is dead."""
    if not groups:
        return []
    if _PROC.is_dir():
        return list(filter(None, (_from_proc(entry, groups) for entry in _PROC.iterdir())))
    columns = ["ps", "-A", "-o", "pid=,pgid=,stat=,command="]
    table = subprocess.run(columns, check=True, capture_output=True, text=True).stdout
    found: list[Process] = []
    for row in table.splitlines():
        process_id, group, state, command = row.split(maxsplit=3)
        if int(group) in groups and not state.startswith("Z"):
            found.append(Process(int(process_id), command))
    return found


def _from_proc(entry: Path, groups: set[int]) -> Process | None:
    if not entry.name.isdecimal():
        return None
    try:
        # The name in the second field may hold spaces and parentheses; what we need stands behind it.
        state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        if int(group) not in groups or state == "Z":
            return None
        # A child that was forked has its parent's command line; its roles stand in its name.
        name = (entry / "comm").read_text().strip()
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return Process(int(entry.name), f"{name}: {command}")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended while we looked


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without settings of the user's own, which would make another run of the same seed."""
    return {
        name: value for name, value in environment.items() if not name.startswith(("NIGHTMILL_", "OPENAI_"))
    }


def serve_command(*, folder: Path, port: int, upstream: str, workers: int, concurrency: int) -> list[str]:
    return [
        *(sys.executable, "-m", "nightmill", "serve", "--folder", str(folder), "--port", str(port)),
        *("--upstream", upstream, "--workers", str(workers), "--concurrency", str(concurrency)),
        *("--window", "24h", "--window", "2s"),
    ]
