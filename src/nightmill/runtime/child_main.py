"""A child process of the local supervisor: runs the roles it is named, rung and drained over its standard
input.

`python -m nightmill.runtime.child_main WORKER_ID worker:0` or `... intake finalizer warden`, or a preforked
told so; the first line of its input is its settings as JSON. It must not outlive its parent by more than a
moment: whoever comes next has taken its leases back.
"""

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nightmill import telemetry
from nightmill.ids import WorkerId
from nightmill.roles.loop import Notifier, Role, keep_turning
from nightmill.roles.worker import Worker
from nightmill.runtime.child import first_line
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.gc_setup import spare_collections
from nightmill.runtime.logs import start_logs
from nightmill.runtime.open_files import raise_open_file_limit
from nightmill.runtime.supervisor import DRAIN
from nightmill.settings import Settings, from_message
from nightmill.upstream.connect import open_upstream

_ORPHAN_GRACE_S = 0.5
_ORPHAN_END_S = 1.0
_TROUBLE_BYTES = 400
"""Short enough for a pipe to take it whole."""


class _ParentCommands:
    """What the parent said: ring, drain, or (by dying) stop at once."""

    def __init__(self, notifier: Notifier) -> None:
        self.roles: list[asyncio.Task[None]] = []
        self.stop = asyncio.Event()
        self._notifier = notifier
        self._orphaned = False
        self._grace_s = 0.0

    def grace_s(self) -> float:
        return min(self._grace_s, _ORPHAN_GRACE_S) if self._orphaned else self._grace_s

    async def listen(self, settings: Settings) -> None:
        self._grace_s = settings.api.drain_s
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while received := await reader.read(1024):
            if DRAIN in received:
                self.stop.set()
            self._notifier.notify_local()
        self._orphaned = True
        self.drain()
        await asyncio.sleep(_ORPHAN_END_S)
        for role in self.roles:
            role.cancel()

    def drain(self) -> None:
        self.stop.set()
        self._notifier.notify_local()


async def work(settings: Settings, worker_id: WorkerId, names: Sequence[str], to_parent: int) -> None:
    def say(line: bytes) -> None:
        try:
            os.write(to_parent, line)
        except (BlockingIOError, BrokenPipeError):
            return  # a hint that finds no room or no reader is not needed

    def emit(event: telemetry.Event) -> None:
        telemetry.log(event)
        match event:
            case telemetry.UpstreamPaused(reason, is_held=True):
                say(_trouble(f"the upstream answers no line: {reason}"))
            case telemetry.UpstreamPaused(reason):
                say(_trouble(f"the upstream is paused: {reason}"))
            case telemetry.WritingPaused(reason):
                say(_trouble(f"answers can't be written: {reason}"))
            case telemetry.UpstreamResumed() | telemetry.WritingResumed():
                say(b"-\n")
            case _:
                return

    notifier = Notifier(lambda: say(b"\n"))
    command = _ParentCommands(notifier)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, command.drain)
    async with (
        open_components(settings, emit=emit, notifier=notifier, worker_id=worker_id) as components,
        asyncio.TaskGroup() as group,
    ):
        listener = group.create_task(command.listen(settings))
        spare_collections()
        async with asyncio.TaskGroup() as roles:
            for name in names:
                command.roles.append(roles.create_task(_run(components, name, command)))
        listener.cancel()


def _trouble(text: str) -> bytes:
    return b"!" + " ".join(text.split()).encode()[:_TROUBLE_BYTES] + b"\n"


async def _run(components: Components, name: str, command: _ParentCommands) -> None:
    match name.split(":"):
        case ["worker", _]:
            url = components.settings.upstream.url
            assert url is not None
            upstream = open_upstream(components.settings.upstream, url=url)
            try:
                worker: Worker = components.worker(upstream)
                await worker.run(command.stop, grace_s=command.grace_s)
            finally:
                await upstream.close()
        case _:
            makers = {
                "intake": components.intake,
                "finalizer": components.finalizer,
                "warden": components.maintenance,
            }
            role: Role = makers[name]()
            await keep_turning(
                role,
                notifier=components.notifier,
                stop=command.stop,
                emit=components.emit,
                random=random.random,
            )


def main(arguments: Sequence[str]) -> None:
    """Args:
    arguments: the worker's id and the names of its roles.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    worker_id, names = WorkerId(arguments[0]), arguments[1:]
    with suppress(
        OSError
    ):  # a preforked has its parent's command line; this is what `ps` and `top` show as well
        Path("/proc/self/comm").write_text(names[0])
    message = first_line(sys.stdin.fileno())
    if not message:
        return  # the parent ended before there was anything to do
    settings = from_message(message)
    start_logs(settings.log_level)
    raise_open_file_limit()
    to_parent = os.dup(sys.stdout.fileno())
    os.set_blocking(to_parent, False)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        asyncio.run(work(settings, worker_id, names, to_parent))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work(settings, worker_id, names, to_parent))
    logging.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
