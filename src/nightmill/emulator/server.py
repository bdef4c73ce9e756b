"""`python -m nightmill.emulator.server`: the emulator over real HTTP, for as long as its parent lives.

It listens on loopback only. The port goes into `--port-file` or through `--port-fd` once it takes
connections. It ends at the end of its standard input; a byte `d` there, after the first line, asks for a
graceful end.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nightmill.emulator.app import TRANSPORT, emulator_app
from nightmill.emulator.faults import read_faults
from nightmill.errors import SetupError

_BACKLOG = 4_096
_KEEP_ALIVE_S = 3_600
_DRAIN = b"d"


class _Protocol(HttpToolsProtocol):
    """Hands the connection to the app, which breaks it on order."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType] - an extension of our own


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ctrl-C reaches the whole process group; whoever started us decides."""
        if sys.stdin.isatty():
            with super().capture_signals():
                yield
            return
        yield

    def stop(self, *, now: bool) -> None:
        self.should_exit = True
        self.force_exit = now


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise SetupError(f"the emulator can't listen on port {port}: {error.strerror}") from None
    listener.listen(_BACKLOG)
    return listener


def _tell_port(port: int, *, file: Path | None, descriptor: int | None) -> None:
    line = f"{port}\n"
    if file is not None:
        unfinished = file.with_name(file.name + ".tmp")
        unfinished.write_text(line, encoding="ascii")
        unfinished.replace(file)
    if descriptor is not None:
        with os.fdopen(descriptor, "w", encoding="ascii") as pipe:
            pipe.write(line)


def _watch_input(server: _Server, loop: asyncio.AbstractEventLoop) -> None:
    """In a thread of its own: standard input may be anything, also a file or /dev/null."""
    past_first_line = False
    while received := os.read(sys.stdin.fileno(), 1_024):
        if not past_first_line:
            _, line_break, received = received.partition(b"\n")
            past_first_line = bool(line_break)
        if past_first_line and _DRAIN in received:
            break
    is_orphan = not received
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(lambda: server.stop(now=is_orphan))


async def _serve(server: _Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    threading.Thread(target=_watch_input, args=(server, loop), daemon=True).start()
    await server.serve(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nightmill.emulator.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="is written once connections are taken")
    parser.add_argument("--port-fd", type=int, help="an open descriptor that gets the port as a line")
    parser.add_argument("--delay-s", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--record", type=Path, help="a file that gets a line for each request")
    parser.add_argument("--faults", default="[]", help="a JSON list of faults, or @file")
    asked = parser.parse_args(arguments)
    try:
        faults: str = asked.faults
        if faults.startswith("@"):
            faults = Path(faults[1:]).read_text(encoding="utf-8")
        app = emulator_app(delay_s=asked.delay_s, record=asked.record, faults=read_faults(faults))
        listener = _listen(asked.port)
    except (SetupError, OSError) as error:
        sys.stderr.write(f"nightmill emulator: {error}\n")
        sys.exit(SetupError.exit_code)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    _tell_port(listener.getsockname()[1], file=asked.port_file, descriptor=asked.port_fd)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, listener))


if __name__ == "__main__":
    main()
