"""SIGTERM and Ctrl-C: the first asks to stop, a second to hurry."""

import asyncio
import signal
from dataclasses import dataclass, field

from nightmill.runtime.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class StopRequest:
    """What this process was stop_request by signals."""

    to_stop: asyncio.Event = field(default_factory=asyncio.Event)
    to_hurry: asyncio.Event = field(default_factory=asyncio.Event)


def install_signal_handlers(supervisor: Supervisor) -> StopRequest:
    """From now on the first signal starts the engine's drain, and a second one ends its children at once."""
    stop_request = StopRequest()

    def stop() -> None:
        if stop_request.to_stop.is_set():
            stop_request.to_hurry.set()
            supervisor.kill()
        stop_request.to_stop.set()
        supervisor.start_drain()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    return stop_request
