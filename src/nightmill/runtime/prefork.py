"""Processes forked from this one once everything is loaded, so that no child loads it all again.

Duty: `prefork` before there is a loop, a thread, a lock or a listener; `PreforkedChild.begin` tells one what
to be. Promise: a preforked holds nothing of its parent's but standard error, and ends when its parent does,
begun or not. Not its duty: children that take a dead one's place: those are started anew (`local`), since a
process with threads is not forked.
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
from typing import NoReturn

from nightmill.runtime.child import Child, first_line, is_hidden

_ENV_START, _ENV_END = 49, 50
"""Of the fields of /proc/self/stat, counted from 0."""


class PreforkedChild:
    """A child that waits to be told what it is. Whoever never begins it ends it by ending."""

    def __init__(self, module: str, process_id: int, to_it: int, from_it: int) -> None:
        self.module = module
        self._process_id = process_id
        self._to_it = to_it
        self._from_it = from_it

    async def begin(self, *arguments: str) -> Child:
        """What `python -m module arguments...` would be."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        out = os.fdopen(self._from_it, "rb", buffering=0)
        heard, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), out)
        pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(self._to_it, "wb", buffering=0))
        pipe.write(json.dumps(arguments).encode() + b"\n")
        return _Begun(self._process_id, pipe, reader, heard)


class _Begun:
    """As `asyncio.subprocess.Process`, for a child of a fork."""

    def __init__(
        self,
        pid: int,
        stdin: asyncio.WriteTransport,
        stdout: asyncio.StreamReader,
        heard: asyncio.ReadTransport,
    ) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._heard = heard
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._watched = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._watched, self._take_note)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, signal: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal)

    def _take_note(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watched)
        os.close(self._watched)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self.stdin.close()
        # What it said last is read in this very round; a loop that ends now leaves no pipe open.
        asyncio.get_running_loop().call_soon(self._heard.close)
        self._ended.set()


def prefork(count: int, *, module: str, main: Callable[[list[str]], None]) -> list[PreforkedChild]:
    """So many preforked of what is loaded by now, or none where that is not to be done safely (only Linux
    forks well, and only a process with one thread).

    Args:
        main: what `python -m module` runs, given its arguments.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return []
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at
    sys.stderr.flush()
    preforked: list[PreforkedChild] = []
    with suppress(OSError):  # no process to be had: the engine tries again
        preforked.extend(_fork(module, main) for _ in range(count))
    return preforked


def _fork(module: str, main: Callable[[list[str]], None]) -> PreforkedChild:
    in_it, to_it = os.pipe()
    from_it, out_of_it = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        _live(in_it, out_of_it, main)
    os.close(in_it)
    os.close(out_of_it)
    return PreforkedChild(module, process_id, to_it, from_it)


def _live(stdin: int, stdout: int, main: Callable[[list[str]], None]) -> NoReturn:
    """The child's whole life. It must never return into what its parent was doing."""
    exit_code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # a brother's pipe would outlive our parent in us
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as the interpreter opens it
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as above
        _forget_settings()
        told = first_line(0)
        if told:
            main(json.loads(told))
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - it ends the process
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(exit_code)


def _forget_settings() -> None:
    """A child started anew has none in its environment (`local`); one that is forked has its parent's, which
    the system shows to whoever may look until the very bytes are overwritten."""
    for name in filter(is_hidden, tuple(os.environ)):
        del os.environ[name]
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number - 2]) for number in (_ENV_START, _ENV_END))
    at = start
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if is_hidden(entry.partition(b"=")[0].decode("utf-8", "replace")):
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1
