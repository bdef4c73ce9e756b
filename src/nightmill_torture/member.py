"""A member of the run: `nightmill serve` or `nightmill work` as a process group of its own.

A member can be started any number of times, killed or frozen whole or in part. `supervise` starts the member
again whenever it is down, as systemd or Kubernetes does. A member is ready when it has sent READY=1 to the
socket that NOTIFY_SOCKET names. `close` leaves no process behind, not even orphans of earlier starts.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from nightmill.errors import UnavailableError
from nightmill_torture.plan import Part
from nightmill_torture.processes import Process, living, send_signal
from nightmill_torture.proof import Proof
from nightmill_torture.storage import NO_LINKS, Links

ENDED_UNASKED: Final = "processes that ended by themselves"
_MARKS: Final[Mapping[Part, str]] = {"worker": "worker:", "background": "intake"}
_READY: Final = b"READY=1"
_LOOK_S = 0.01
_SUPERVISE_S = 0.05
_PAUSE_S = 0.3


class Member:
    """One process of a fleet: a server, or a worker host.

    Args:
        command: starts the member in the foreground.
        environment: the whole environment.
        log: the file that gets standard output and error.
        name: sent with each request to the upstream.
        port: of the API; 0 for a worker host.
        upstreams: the names of their settings in the environment.
    """

    def __init__(
        self,
        command: list[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        name: str = "server-1",
        links: Links = NO_LINKS,
        port: int = 0,
        upstreams: Sequence[str] = ("UPSTREAM",),
    ) -> None:
        self.name = name
        self.links = links
        self.port = port
        self.started = 0.0
        """Monotonic time of the latest start."""
        self._command = command
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self._was_killed = False
        self._down_s = 0.0
        self._is_ready = False
        # A folder of its own: the path of a socket has at most 103 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="nightmill-")
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.setblocking(False)
        self._ready.bind(f"{self._folder.name}/ready")
        self._environment = {
            **environment,
            **{f"NIGHTMILL_{it}__HEADERS__X-EMULATOR-SENDER": name for it in upstreams},
            "NOTIFY_SOCKET": f"{self._folder.name}/ready",
        }

    @property
    def is_alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def is_ready(self) -> bool:
        self._read_notifications()
        return self.is_alive and self._is_ready

    def _read_notifications(self) -> None:
        with suppress(BlockingIOError):
            while message := self._ready.recv(64):
                self._is_ready = message == _READY

    @property
    def processes(self) -> list[Process]:
        return living(self._groups)

    def start(self, **environment: str) -> None:
        self._read_notifications()
        self._is_ready = self._was_killed = False
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

    async def supervise(self, proof: Proof) -> None:
        """Starts the member whenever it is down. An exit without a kill is a breach, unless Postgres or the
        bucket could not be reached at the start."""
        proof.check(ENDED_UNASKED)
        while True:
            self.start()
            assert self._child is not None
            while (code := self._child.poll()) is None:
                await asyncio.sleep(_SUPERVISE_S)
            if not self._was_killed and code != UnavailableError.exit_code:
                proof.breach(ENDED_UNASKED, f"{self.name} ended with {code}; see {self._log.name}")
            await asyncio.sleep(self._down_s if self._was_killed else _PAUSE_S)

    async def kill(self, part: Part, *, down_s: float = 0.0) -> bool:
        """Kills with SIGKILL; False when there was no such process.

        With "all" no process of any start is left. A supervised member stays down for `down_s`.
        """
        was_alive = self.is_alive
        if part in ("all", "parent"):
            self._was_killed, self._down_s = True, down_s
        match part:
            case "all":
                await self._kill_groups()
            case "parent":
                assert self._child is not None
                self._child.kill()
                self._child.wait()
            case _:
                return bool(send_signal(signal.SIGKILL, self._ids_of(part)[:1]))
        return was_alive

    def freeze(self, part: Part) -> list[int]:
        """Stops all processes or one worker with SIGSTOP; the ids of the stopped ones."""
        process_ids = self._ids_of(part)
        return send_signal(signal.SIGSTOP, process_ids if part == "all" else process_ids[:1])

    def _ids_of(self, part: Part) -> list[int]:
        mark = _MARKS.get(part, "")
        groups = self._groups if part == "all" or self._child is None else {self._child.pid}
        return [process.process_id for process in living(groups) if mark in process.command]

    def terminate(self) -> None:
        assert self._child is not None
        self._child.terminate()

    async def has_ended(self, *, within_s: float) -> int | None:
        """The exit code once the member and all its children are gone; None if they are not gone in time."""
        assert self._child is not None
        try:
            async with asyncio.timeout(within_s):
                while self._child.poll() is None or living(self._groups):
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            return None
        return self._child.returncode

    async def _kill_groups(self) -> None:
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        while living(self._groups):
            await asyncio.sleep(_LOOK_S)
        self._groups.clear()

    async def close(self) -> None:
        await self._kill_groups()
        self._ready.close()
        self._folder.cleanup()


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the user's own settings, which would change the run of a seed."""
    return {
        name: value for name, value in environment.items() if not name.startswith(("NIGHTMILL_", "OPENAI_"))
    }


def serve_command(port: int, *, workers: int = 0, upstream: str = "", concurrency: int = 0) -> list[str]:
    """`nightmill serve`; without an upstream here, the environment names those of the workers."""
    command = [
        *(sys.executable, "-m", "nightmill", "serve", "--port", str(port), "--workers", str(workers)),
        *("--window", "24h", "--window", "2s"),
    ]
    return [*command, "--upstream", upstream, "--concurrency", str(concurrency)] if upstream else command


def work_command(*, workers: int) -> list[str]:
    return [sys.executable, "-m", "nightmill", "work", "--workers", str(workers)]
