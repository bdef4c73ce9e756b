"""Runs child processes of this machine: starts, restarts, notifies and drains them.

Each program is started, and started again after its process ended; `on_exit` is awaited first. Notifications
are passed on between the children. No child outlives this process by more than a moment: the end of its
standard input ends it. The supervisor stores nothing and may die at any time.

The pipe protocol: a child's standard input gets its first message (one line) and then single bytes, NOTIFY
or DRAIN. Its standard output has lines: "!" and a problem that keeps the child from its work, "-" when that
problem is over; any other line means "notify all other processes".
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from nightmill.runtime.child import Child, is_hidden
from nightmill.runtime.prefork import PreforkedChild
from nightmill.telemetry import Emit, ProcessDied

NOTIFY = b"r"
DRAIN = b"d"

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_HEALTHY_S = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """One child: `python -m module arguments...`, with `message` as its first line of input.

    `stage` command the end: those of a lower stage end first, because they still need the others.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    message: str = ""
    stage: int = 0


def free_port() -> int:
    """A loopback port nobody listens on now. It is picked here so that a child's restart keeps it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class _Death:
    """A program's latest end. `in_a_row` counts those of which none was healthy between."""

    exit_code: int
    at: float
    in_a_row: int


@dataclass(slots=True)
class Supervisor:
    """Keeps programs running until `drain`.

    Args:
        notify_local: wakes the roles of this process.
        monotonic: seconds, for restart pauses.

        preforked: taken for the first programs of their module; a dead one's successor is started anew.

    `on_exit` is told of each program that has surely died, before it is started again.
    """

    emit: Emit
    notify_local: Callable[[], None]
    monotonic: Callable[[], float]
    preforked: Sequence[PreforkedChild] = ()
    on_exit: Callable[[Program], Awaitable[None]] | None = None
    _unused: list[PreforkedChild] = field(default_factory=list)
    _children: dict[str, tuple[Program, Child]] = field(default_factory=dict)
    _is_draining: bool = False
    _may_begin: asyncio.Event = field(default_factory=asyncio.Event)
    _troubles: dict[str, str] = field(default_factory=dict)
    _deaths: dict[str, "_Death"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._may_begin.set()
        self._unused = list(self.preforked)

    def close_start_barrier(self) -> None:
        """From now on programs are started, but get their first message only after `open_start_barrier`."""
        self._may_begin.clear()

    def open_start_barrier(self) -> None:
        self._may_begin.set()

    async def keep(self, program: Program) -> None:
        """Runs the program, again and again, until `drain`."""
        pause_s = _FIRST_PAUSE_S
        while not self._is_draining:
            started = self.monotonic()
            exit_code = await self._run(program)
            if self._is_draining:
                return
            self.emit(ProcessDied(program.name, exit_code))
            if self.on_exit is not None:
                await self.on_exit(program)
            is_healthy = self.monotonic() - started > _HEALTHY_S
            self._note_death(program.name, exit_code, is_first=is_healthy)
            pause_s = _FIRST_PAUSE_S if is_healthy else min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    def notify(self) -> None:
        """Wakes the roles of every child."""
        self._tell(NOTIFY, list(self._children))

    def start_drain(self) -> None:
        """From now on nothing is started again, and the first stage finishes what it has."""
        if not self._may_begin.is_set():
            self.kill()  # they have not begun anything
        elif not self._is_draining:
            self._is_draining = True
            self._tell(DRAIN, self._of_stage(self._first_stage()))

    async def drain(self, *, grace_s: float) -> None:
        """Ends every child, stage by stage; kills what has not ended after `grace_s`."""
        self.start_drain()
        try:
            async with asyncio.timeout(grace_s):
                while self._children:
                    names = self._of_stage(self._first_stage())
                    self._tell(DRAIN, names)
                    for name in names:
                        if name in self._children:
                            await self._children[name][1].wait()
                            self._children.pop(name, None)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """Ends every child now. Nothing settled is lost by it."""
        self._is_draining = True
        self._may_begin.set()
        for _, child in self._children.values():
            if child.returncode is None:
                child.send_signal(signal.SIGKILL)

    @property
    def process_ids(self) -> dict[str, int]:
        return {name: child.pid for name, (_, child) in self._children.items() if child.returncode is None}

    @property
    def trouble(self) -> str | None:
        """What keeps a child from its work, in one line: that it ends again and again, or what it says."""
        since = self.monotonic() - _HEALTHY_S
        for name, death in self._deaths.items():
            if death.in_a_row > 1 and death.at > since:
                return f"the {name} process keeps ending, with {death.exit_code}; see the log"
        return min(self._troubles.values(), default=None)

    def _note_death(self, name: str, exit_code: int, *, is_first: bool) -> None:
        earlier = self._deaths.get(name)
        in_a_row = 1 if is_first or earlier is None else earlier.in_a_row + 1
        self._deaths[name] = _Death(exit_code, self.monotonic(), in_a_row)

    def _first_stage(self) -> int:
        return min((program.stage for program, _ in self._children.values()), default=0)

    def _of_stage(self, stage: int) -> list[str]:
        return [name for name, (program, _) in self._children.items() if program.stage == stage]

    def _tell(self, message: bytes, names: Iterable[str]) -> None:
        for name in names:
            pipe = self._children[name][1].stdin
            if pipe is not None and not pipe.is_closing():
                pipe.write(message)

    async def _run(self, program: Program) -> int:
        try:
            return await self._live(program)
        except OSError as error:  # no process or descriptor to be had: later there may be
            return -(error.errno or 1)

    async def _live(self, program: Program) -> int:
        child = await self._start(program)
        assert child.stdin is not None
        assert child.stdout is not None
        self._children[program.name] = (program, child)
        try:
            if self._is_draining:
                child.kill()
            await self._may_begin.wait()
            child.stdin.write(program.message.encode() + b"\n")
            while line := await _line_of(child.stdout):
                self._hear(program, line.strip())
            return await child.wait()
        except (BrokenPipeError, ConnectionResetError):
            return await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
            self._children.pop(program.name, None)
            self._troubles.pop(program.name, None)

    async def _start(self, program: Program) -> Child:
        for number, preforked in enumerate(self._unused):
            if preforked.module == program.module:
                return await self._unused.pop(number).begin(*program.arguments)
        environment = {name: value for name, value in os.environ.items() if not is_hidden(name)}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            program.module,
            *program.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )

    def _hear(self, program: Program, said: bytes) -> None:
        if said.startswith(b"!"):
            self._troubles[program.name] = said[1:].decode("utf-8", "replace")
        elif said == b"-":
            self._troubles.pop(program.name, None)
        else:
            self.notify_local()
            self._tell(NOTIFY, [name for name in self._children if name != program.name])


async def _line_of(pipe: asyncio.StreamReader) -> bytes:
    """The next line, b"" at the end. One longer than the reader's limit is nothing a child of ours says."""
    while True:
        with contextlib.suppress(ValueError):
            return await pipe.readline()
