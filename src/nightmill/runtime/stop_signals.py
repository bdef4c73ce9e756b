"""SIGTERM and Ctrl-C of `serve` and `work`: the first stops the process, a second one stops it at once.

They are handled from the first moment. During the start the first cancels the start; nothing has begun then.
Once the processes work, `take_over` says what stops them.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from nightmill.errors import UnavailableError
from nightmill.runtime.supervisor import Supervisor
from nightmill.store import Store

_STOPPED: Final = "nightmill stopped before it was ready; no line was sent"
_INTERRUPTED: Final = 130
_READ_S: Final = 2.0


class StopSignals:
    """What signals have asked of this process: `to_stop` is set by the first, `to_hurry` by a second.

    Args:
        on_first: called with the first signal; `on_second` with each later one.
    """

    def __init__(self, *, on_first: Callable[[], object], on_second: Callable[[], object]) -> None:
        self.to_stop = asyncio.Event()
        self.to_hurry = asyncio.Event()
        self._on_first = on_first
        self._on_second = on_second
        self.is_starting = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive)

    def take_over(self, *, on_first: Callable[[], object], on_second: Callable[[], object]) -> None:
        """The start is over: signals call these functions from now on."""
        self.is_starting = False
        self._on_first = on_first
        self._on_second = on_second

    def _receive(self) -> None:
        if self.to_stop.is_set():
            self.to_hurry.set()
            self._on_second()
        else:
            self.to_stop.set()
            self._on_first()


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Generator[StopSignals]:
    """Handles the signals of this process. A start that a signal cancels ends the block, and is said."""
    task = asyncio.current_task()
    assert task is not None
    # The children of this process exit with it.
    signals = StopSignals(on_first=task.cancel, on_second=lambda: os._exit(_INTERRUPTED))
    try:
        yield signals
    except asyncio.CancelledError:
        if not (signals.is_starting and signals.to_stop.is_set()):
            raise
        task.uncancel()
        say(_STOPPED)


def drain_on_signals(
    signals: StopSignals, supervisor: Supervisor, *, say: Callable[[str], None], drain_s: float
) -> None:
    """From now on the first signal drains the children, and a second one ends them; both are said.

    Args:
        drain_s: how long the drain may take.
    """

    def stop() -> None:
        say(f"stopping: waiting for lines and requests in flight, at most {drain_s:g} s")
        say("Ctrl-C again stops at once; unfinished batches go on at the next start")
        supervisor.start_drain()

    def hurry() -> None:
        say("stopping at once; the lines in flight will be sent again")
        supervisor.kill()

    signals.take_over(on_first=stop, on_second=hurry)


async def stopped_text(store: Store) -> str:
    """The last line: what is left to do."""
    try:
        async with asyncio.timeout(_READ_S):
            backlog = await store.batches.backlog()
    except (UnavailableError, TimeoutError):
        return "nightmill stopped; unfinished batches go on at the next start"
    return f"nightmill stopped; {unfinished_text(sum(backlog.batches.values()), when='at the next start')}"


def unfinished_text(count: int, *, when: str) -> str:
    """What becomes of so many unfinished batches, and when."""
    match count:
        case 0:
            return "no batch is unfinished"
        case 1:
            return f"1 unfinished batch goes on {when}"
        case _:
            return f"{count:,} unfinished batches go on {when}"
