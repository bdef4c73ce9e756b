"""Runs the child processes of this machine: starts, restarts, notifies and drains them.

A program whose process exits is started again; `on_exit` is awaited first. A notification from one child is
passed on to all others. No child outlives this process by more than a moment: the end of its standard input
ends it. The supervisor stores nothing and may die at any time.

The pipe protocol (the child's side is in `child`): a child's standard input gets its first message (one line)
and then single bytes, NOTIFY, DRAIN or one of LEVEL_BYTES. Its standard output has lines: "!" and what keeps
the child from its work, as JSON (see `problems`), "-" when that is over; any other line means "notify all
other processes".
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from nightmill.runtime.child import DRAIN, LEVEL_BYTES, NOTIFY, is_hidden
from nightmill.runtime.logs import set_level
from nightmill.runtime.prefork import Child, PreforkedChild
from nightmill.runtime.problems import Problems, decoded, merged
from nightmill.telemetry import Emit, ProcessDied

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_HEALTHY_S: Final = 30.0
"""A process that ran for so long was healthy: its exit is not a repeated failure."""


@dataclass(frozen=True, slots=True)
class Program:
    """One child: `python -m nightmill.runtime.child kind arguments...`, with `message` as its first message.

    `stage` orders a drain: programs of a lower stage exit first, because they still need the others.
    """

    name: str
    kind: str
    arguments: tuple[str, ...] = ()
    message: str = ""
    stage: int = 0


def child_command(kind: str, *arguments: str) -> list[str]:
    """The command line of a child process."""
    return [sys.executable, "-m", "nightmill.runtime.child", kind, *arguments]


def without_interrupts(command: Sequence[str]) -> list[str]:
    """The command as a process that ignores SIGINT from its beginning, not only once Python has loaded it.

    Ctrl-C in a terminal reaches every process of the group; the parent decides what it means. A shell sets
    that, because the event loop resets all signals of the processes that it starts. The shell is replaced by
    the command. Where there is none, the command is returned as it is.
    """
    shell = shutil.which("sh")
    return list(command) if shell is None else [shell, "-c", "trap '' INT; exec \"$@\"", shell, *command]


def free_port() -> int:
    """A loopback port that is free now. The parent picks it, so that a restarted child keeps it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class _Failure:
    """A program's latest exit. `in_a_row` counts the exits since the last healthy process."""

    exit_code: int
    at: float
    in_a_row: int


@dataclass(slots=True)
class Supervisor:
    """Keeps programs running until `drain`.

    Args:
        notify_local: wakes the roles of this process.
        monotonic: seconds, for restart pauses.
        preforked: used for the first processes of their kind; a replacement is started anew.
        on_exit: awaited with each program whose process has exited, before the program is started again.
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
    _problems: dict[str, Problems] = field(default_factory=dict)
    _failures: dict[str, _Failure] = field(default_factory=dict)
    _level_byte: bytes = b""

    def __post_init__(self) -> None:
        self._may_begin.set()
        self._unused = list(self.preforked)

    # --- start and restart ---------------------------------------------------------------------------

    def close_start_barrier(self) -> None:
        """From now on processes are started, but get their first message only after `open_start_barrier`."""
        self._may_begin.clear()

    def open_start_barrier(self) -> None:
        self._may_begin.set()

    def start(self, programs: Iterable[Program], *, group: asyncio.TaskGroup) -> None:
        """Runs the programs in tasks of the group."""
        for program in programs:
            group.create_task(self.run(program))

    async def run(self, program: Program) -> None:
        """Starts the program, and starts it again whenever its process exits, until `drain`."""
        pause_s = _FIRST_PAUSE_S
        while not self._is_draining:
            started_at = self.monotonic()
            exit_code = await self._run_process(program)
            if self._is_draining:
                return
            self.emit(ProcessDied(program.name, exit_code))
            if self.on_exit is not None:
                await self.on_exit(program)
            was_healthy = self.monotonic() - started_at > _HEALTHY_S
            self._note_failure(program.name, exit_code, is_first=was_healthy)
            pause_s = _FIRST_PAUSE_S if was_healthy else min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _run_process(self, program: Program) -> int:
        """Runs one process of the program until it exits; returns its exit code."""
        starting = asyncio.ensure_future(self._start_process(program))
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # uvloop and the file object of a pipe both close its descriptor if they are interrupted here; by
            # then it may be that of another file.
            with contextlib.suppress(OSError):
                (await starting).kill()
            raise
        except OSError as error:  # no process or descriptor is to be had now; later there may be
            return -(error.errno or 1)
        self._children[program.name] = (program, child)
        try:
            if self._is_draining:
                child.kill()
            await self._may_begin.wait()
            await self._converse(program, child)
            return await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
            self._children.pop(program.name, None)
            self._problems.pop(program.name, None)

    async def _start_process(self, program: Program) -> Child:
        for number, preforked in enumerate(self._unused):
            if preforked.kind == program.kind:
                return await self._unused.pop(number).begin(program.kind, *program.arguments)
        environment = {name: value for name, value in os.environ.items() if not is_hidden(name)}
        return await asyncio.create_subprocess_exec(
            *without_interrupts(child_command(program.kind, *program.arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )

    # --- notify --------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Wakes the roles of every child."""
        self._send(NOTIFY, list(self._children))

    def set_log_level(self, level: str) -> None:
        """Changes the log level of every child, also of those that start later."""
        self._level_byte = LEVEL_BYTES[level]
        self._send(self._level_byte, list(self._children))

    async def _converse(self, program: Program, child: Child) -> None:
        """Sends the first message, then receives lines until the child closes its output."""
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # The process may have exited already; uvloop raises RuntimeError for a write to its pipe.
            if not child.stdin.is_closing():
                child.stdin.write(program.message.encode() + b"\n" + self._level_byte)
            while line := await _next_line(child.stdout):
                self._receive(program, line.strip())

    def _receive(self, program: Program, line: bytes) -> None:
        if line.startswith(b"!"):
            self._problems[program.name] = decoded(line[1:])
        elif line == b"-":
            self._problems.pop(program.name, None)
        else:
            self.notify_local()
            self._send(NOTIFY, [name for name in self._children if name != program.name])

    def _send(self, message: bytes, names: Iterable[str]) -> None:
        for name in names:
            pipe = self._children[name][1].stdin
            if pipe is not None and not pipe.is_closing():
                pipe.write(message)

    # --- drain ---------------------------------------------------------------------------------------

    def start_drain(self) -> None:
        """From now on no process is started, and those of the first stage finish their work and exit."""
        if not self._may_begin.is_set():
            self.kill()  # no process has begun any work
        elif not self._is_draining:
            self._is_draining = True
            self._send(DRAIN, self._of_stage(self._first_stage()))

    async def drain(self, *, grace_s: float) -> None:
        """Drains every child, stage by stage; kills those that have not exited after `grace_s`."""
        self.start_drain()
        try:
            async with asyncio.timeout(grace_s):
                while self._children:
                    await self._drain_stage(self._of_stage(self._first_stage()))
        except TimeoutError:
            self.kill()

    async def _drain_stage(self, names: Sequence[str]) -> None:
        self._send(DRAIN, names)
        for name in names:
            if name in self._children:
                await self._children[name][1].wait()
                self._children.pop(name, None)

    def kill(self) -> None:
        """Ends every child now. No durable answer is lost by this."""
        self._is_draining = True
        self._may_begin.set()
        for _, child in self._children.values():
            if child.returncode is None:
                child.send_signal(signal.SIGKILL)

    def _first_stage(self) -> int:
        return min((program.stage for program, _ in self._children.values()), default=0)

    def _of_stage(self, stage: int) -> list[str]:
        return [name for name, (program, _) in self._children.items() if program.stage == stage]

    # --- state ---------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What keeps a child from its work, in one line: repeated exits, or the reported problems."""
        return self.exits_text or self.problems.text

    @property
    def exits_text(self) -> str | None:
        """Which child keeps exiting, if one does."""
        since = self.monotonic() - _HEALTHY_S
        for name, failure in self._failures.items():
            if failure.in_a_row > 1 and failure.at > since:
                return f"the {name} process keeps ending, with {failure.exit_code}; see the log"
        return None

    @property
    def problems(self) -> Problems:
        """What the children report, merged."""
        return merged(self._problems.values())

    def _note_failure(self, name: str, exit_code: int, *, is_first: bool) -> None:
        earlier = self._failures.get(name)
        in_a_row = 1 if is_first or earlier is None else earlier.in_a_row + 1
        self._failures[name] = _Failure(exit_code, self.monotonic(), in_a_row)


def change_log_level(supervisor: Supervisor, level: str) -> None:
    """Changes the log level of this process and of its children, and logs the change."""
    set_level(level)
    supervisor.set_log_level(level)
    logging.getLogger("nightmill").log(
        logging.getLevelNamesMapping()[level.upper()], "the log level is %s", level
    )


def change_log_level_on_signals(supervisor: Supervisor, *, configured: str) -> None:
    """From now on SIGUSR1 changes the log level to debug, and SIGUSR2 back to the configured one."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, change_log_level, supervisor, "debug")
    loop.add_signal_handler(signal.SIGUSR2, change_log_level, supervisor, configured)


async def _next_line(pipe: asyncio.StreamReader) -> bytes:
    """The next line, b"" at the end. Skips lines over the reader's limit: the protocol has none."""
    while True:
        with contextlib.suppress(ValueError):
            return await pipe.readline()
