"""Forks child processes once this process has loaded all modules, so that no child loads them again.

`prefork` must be called before there is an event loop, a thread, a lock or a listener. A preforked child
waits until `PreforkedChild.begin` gives it its arguments. It inherits standard error from its parent and
nothing else, and exits when its parent exits, whether it has begun or not. The supervisor starts the
replacement of a child that has exited as a new process, because a process with threads must not be forked.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Protocol

from nightmill.runtime.child import first_line, is_hidden

_ENV_START: Final = 49
_ENV_END: Final = 50
"""Fields of /proc/self/stat, counted from 0."""


class Pipe(Protocol):
    """The part of `asyncio.StreamWriter` and of `asyncio.WriteTransport` that the supervisor uses."""

    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool: ...


class Child(Protocol):
    """A child process; the part of `asyncio.subprocess.Process` that the supervisor uses."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> Pipe | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, signal: int) -> None: ...


class PreforkedChild:
    """A forked child that waits for its arguments."""

    def __init__(self, kind: str, process_id: int, to_child: int, from_child: int) -> None:
        self.kind = kind
        self._process_id = process_id
        self._to_child = to_child
        self._from_child = from_child

    async def begin(self, *arguments: str) -> Child:
        """The child runs `main(arguments)`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        out = os.fdopen(self._from_child, "rb", buffering=0)
        output, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), out)
        into = os.fdopen(self._to_child, "wb", buffering=0)
        pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, into)
        pipe.write(json.dumps(arguments).encode() + b"\n")
        return _ForkedChild(self._process_id, pipe, reader, output)


class _ForkedChild:
    """`asyncio.subprocess.Process` for a forked child."""

    def __init__(
        self,
        pid: int,
        stdin: asyncio.WriteTransport,
        stdout: asyncio.StreamReader,
        output: asyncio.ReadTransport,
    ) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._output = output
        self.returncode: int | None = None
        self._exited = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._note_exit)

    async def wait(self) -> int:
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, signal: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal)

    def _note_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self.stdin.close()
        # The last output is read in this iteration of the loop; a loop that ends now leaves no pipe open.
        asyncio.get_running_loop().call_soon(self._output.close)
        self._exited.set()


def prefork(count: int, *, kind: str, main: Callable[[list[str]], None]) -> list[PreforkedChild]:
    """Forks `count` children, or none where that is not safe: only on Linux, from a process with one thread.

    Args:
        kind: the kind of child that the loaded modules serve.
        main: runs in the child, with the arguments of `PreforkedChild.begin`.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return []
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it visits
    sys.stderr.flush()
    preforked: list[PreforkedChild] = []
    # Ctrl-C reaches the children too; it waits until a child ignores it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with suppress(OSError):  # no process is to be had now: the supervisor tries again
            preforked.extend(_fork(kind, main) for _ in range(count))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return preforked


def _fork(kind: str, main: Callable[[list[str]], None]) -> PreforkedChild:
    child_input, to_child = os.pipe()
    from_child, child_output = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        _run_child(child_input, child_output, main)
    os.close(child_input)
    os.close(child_output)
    return PreforkedChild(kind, process_id, to_child, from_child)


def _run_child(stdin: int, stdout: int, main: Callable[[list[str]], None]) -> NoReturn:
    """The whole life of the child. It must never return into the code of its parent."""
    exit_code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        # The pipe of another child, kept open here, would hide the parent's exit from that child.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as the interpreter opens it
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as above
        _erase_hidden_environment()
        arguments = first_line(0)
        if arguments:
            main(json.loads(arguments))
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - it ends the process
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(exit_code)


def _erase_hidden_environment() -> None:
    """Removes settings from the environment of a forked child, as the supervisor does for a new process.

    The system shows the environment that the parent was started with until its bytes are overwritten.
    """
    for name in filter(is_hidden, tuple(os.environ)):
        del os.environ[name]
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number - 2]) for number in (_ENV_START, _ENV_END))
    at = start
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if is_hidden(entry.partition(b"=")[0].decode("utf-8", "replace")):
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1
