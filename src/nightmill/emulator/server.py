"""The emulator over real HTTP, in a child process of kind `emulator`: `python -m nightmill.runtime.child
emulator`.

It listens on loopback only, and announces its port once it takes connections. A drain finishes the requests
in flight. The process exits when its parent exits.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nightmill.emulator.asgi import TRANSPORT, emulator_app
from nightmill.emulator.fault_plan import Chances
from nightmill.emulator.faults import read_faults
from nightmill.errors import SetupError

_BACKLOG = 4_096
_KEEP_ALIVE_S = 3_600


class _Protocol(HttpToolsProtocol):
    """Hands the connection to the app, which breaks it for an injected fault."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType] - an extension of our own


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handles signals only when run by hand: otherwise the parent decides what Ctrl-C means."""
        if sys.stdin.isatty():
            with super().capture_signals():
                yield
            return
        yield

    def stop(self) -> None:
        self.should_exit = True


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the child."""
    parser.add_argument("--delay-s", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--delay-p99-s", type=float, help="99 of 100 answers take at most this long")
    parser.add_argument("--fail-rate", type=float, default=0.0, help="the share of requests that fail")
    parser.add_argument("--fail-status", type=int, nargs="+", default=[500, 503], help="their statuses")
    parser.add_argument("--seed", type=int, default=0, help="another number: other requests fail")
    parser.add_argument("--record", type=Path, help="a file that gets a line for each request")
    parser.add_argument("--faults", default="[]", help="a JSON list of faults, or @file")


def chances_of(options: argparse.Namespace) -> Chances:
    """What the options leave to chance."""
    return Chances(
        fail_rate=options.fail_rate,
        fail_statuses=tuple(options.fail_status),
        delay_s=options.delay_s,
        delay_p99_s=options.delay_p99_s,
        seed=options.seed,
    )


def run(
    options: argparse.Namespace,
    *,
    announce: Callable[[int], None],
    on_drain: Callable[[Callable[[], None]], None],
) -> None:
    """Serves until it is drained.

    Raises:
        SetupError: the faults or the record can't be read, or the port is taken.
    """
    try:
        faults: str = options.faults
        if faults.startswith("@"):
            faults = Path(faults[1:]).read_text(encoding="utf-8")
        app = emulator_app(record=options.record, faults=read_faults(faults), chances=chances_of(options))
    except OSError as error:
        raise SetupError(str(error)) from None
    listener = _listen(options.port)
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
    announce(listener.getsockname()[1])
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, listener, on_drain))


async def _serve(
    server: _Server, listener: socket.socket, on_drain: Callable[[Callable[[], None]], None]
) -> None:
    loop = asyncio.get_running_loop()

    def drain() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(server.stop)

    on_drain(drain)
    await server.serve(sockets=[listener])
