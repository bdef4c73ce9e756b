"""SIGTERM and Ctrl-C: the first asks to stop, a second to hurry."""

import asyncio
import signal
from dataclasses import dataclass, field

from nightmill.runtime.supervisor import LocalEngine


@dataclass(frozen=True, slots=True)
class Asked:
    """What this process was asked by signals."""

    to_stop: asyncio.Event = field(default_factory=asyncio.Event)
    to_hurry: asyncio.Event = field(default_factory=asyncio.Event)


def heed_signals(engine: LocalEngine) -> Asked:
    """From now on the first signal starts the engine's drain, and a second one ends its children at once."""
    asked = Asked()

    def stop() -> None:
        if asked.to_stop.is_set():
            asked.to_hurry.set()
            engine.kill()
        asked.to_stop.set()
        engine.start_drain()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    return asked
