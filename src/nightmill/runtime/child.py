"""The main function of every child process: `python -m nightmill.runtime.child KIND ARGUMENTS...`.

Signals, process title, standard streams, the pipe protocol of `supervisor` and exit codes are handled here,
once for all kinds. The work of a kind is in the module that `_MODULES` names; a process loads only its own.
Loading this module costs little, so that the emulator and llama.cpp start fast.

A child exits soon after its parent: the end of its standard input is the end of the parent.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from nightmill.errors import SetupError

NOTIFY: Final = b"r"
DRAIN: Final = b"d"
LEVEL_BYTES: Final = {"debug": b"D", "info": b"I", "warning": b"W", "error": b"E"}
"""Messages that change the level of the log."""

ROLES: Final = "roles"
LAUNCHER: Final = "launcher"
LLAMA: Final = "llama"
EMULATOR: Final = "emulator"

_MODULES: Final = {
    ROLES: "nightmill.runtime.role_process",
    LAUNCHER: "nightmill.runtime.ray.launcher_process",
    LLAMA: "nightmill.runtime.llama",
    EMULATOR: "nightmill.emulator.server",
}
_SERVERS: Final = (LLAMA, EMULATOR)
"""Kinds that listen on a port. They may also be run by hand."""

_READ_BYTES: Final = 1_024


class Parent:
    """The parent process, as seen by a child that has taken its first message."""

    def __init__(self) -> None:
        self._output = os.dup(sys.stdout.fileno())
        os.set_blocking(self._output, False)

    def notify(self) -> None:
        """Asks the parent to notify all other processes."""
        self._write(b"\n")

    def report(self, problems: bytes) -> None:
        """Reports what keeps this child from its work.

        Args:
            problems: all of them, as `problems.Problems.encoded` writes them; empty when they are over.
        """
        self._write(b"!" + problems + b"\n" if problems else b"-\n")

    async def messages(self) -> AsyncIterator[bytes]:
        """Bytes from the parent, NOTIFY, DRAIN and LEVEL_BYTES, as they arrive; ends with the parent."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while received := await reader.read(_READ_BYTES):
            yield received

    def _write(self, line: bytes) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # only a hint: it may be lost
            os.write(self._output, line)


def level_in(received: bytes) -> str | None:
    """The newest log level among bytes from the parent; None without one."""
    places = {received.rfind(byte): level for level, byte in LEVEL_BYTES.items() if byte in received}
    return places[max(places)] if places else None


def main(arguments: Sequence[str]) -> None:
    """Runs a child of the kind that the first argument names; raises SystemExit with its exit code.

    A kind's module has `run`. Kinds with a first message get `run(message, arguments, parent)`, which returns
    the exit code. Servers get `run(options, announce, on_drain)` and declare their options with
    `add_arguments`.
    """
    kind, *rest = arguments
    if kind not in _MODULES:
        raise SystemExit(f"there is no child process of kind '{kind}'; choose from {', '.join(_MODULES)}")
    if kind in _SERVERS:
        _run_server(kind, rest)
        return
    _ignore_interrupts()
    _set_title(rest[1] if kind == ROLES else kind)
    message = first_line(sys.stdin.fileno())
    if not message:
        return  # the parent exited before there was any work
    parent = Parent()
    _send_output_to_log()
    exit_code: int = import_module(_MODULES[kind]).run(message, rest, parent)
    logging.shutdown()
    raise SystemExit(exit_code)


def first_line(descriptor: int) -> str:
    """The first message, read byte by byte, because what follows belongs to the event loop."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def is_hidden(name: str) -> bool:
    """Whether an environment variable is withheld from children.

    Children that need settings get them as their first message; a model server needs no key. Variables that
    arm failpoints are passed on, because a test arms them for all processes.
    """
    return name.startswith("NIGHTMILL_") and not name.startswith("NIGHTMILL_CRASH_")


def _run_server(kind: str, arguments: Sequence[str]) -> None:
    if not sys.stdin.isatty():  # not run by hand
        _ignore_interrupts()
    module: Any = import_module(_MODULES[kind])
    parser = argparse.ArgumentParser(
        prog=f"python -m nightmill.runtime.child {kind}", description=module.__doc__
    )
    module.add_arguments(parser)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="is written once the server takes connections")
    parser.add_argument("--port-fd", type=int, help="an open descriptor that gets the port as a line")
    options = parser.parse_args(arguments)
    _set_title(kind)
    _send_output_to_log()

    def announce(port: int) -> None:
        _write_port(port, file=options.port_file, descriptor=options.port_fd)

    try:
        module.run(options, announce=announce, on_drain=_call_on_drain)
    except SetupError as error:
        sys.stderr.write(f"nightmill {kind}: {error}\n")
        raise SystemExit(SetupError.exit_code) from None


def _call_on_drain(drain: Callable[[], None]) -> None:
    """Calls `drain` from another thread when the parent asks; exits the process when the parent has exited.

    A thread, because standard input may be anything, also a file or /dev/null.
    """

    def watch() -> None:
        is_after_first_line = False
        while received := os.read(sys.stdin.fileno(), _READ_BYTES):
            if not is_after_first_line:
                _, line_break, received = received.partition(b"\n")
                is_after_first_line = bool(line_break)
            if is_after_first_line and DRAIN in received:
                drain()
        # All clients have exited with the parent, so nothing is waited for, not even a model being loaded.
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _write_port(port: int, *, file: Path | None, descriptor: int | None) -> None:
    line = f"{port}\n"
    if file is not None:
        unfinished = file.with_name(file.name + ".tmp")
        unfinished.write_text(line, encoding="ascii")
        unfinished.replace(file)
    if descriptor is not None:
        with os.fdopen(descriptor, "w", encoding="ascii") as pipe:
            pipe.write(line)


def _ignore_interrupts() -> None:
    """Ignores SIGINT: Ctrl-C in a terminal reaches the whole group, and the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _send_output_to_log() -> None:
    """Sends what libraries print to standard error, because standard output carries the pipe protocol."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _set_title(title: str) -> None:
    """Sets what `ps` and `top` show; a forked child has the command line of its parent."""
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/comm").write_text(title)


if __name__ == "__main__":
    main(sys.argv[1:])
