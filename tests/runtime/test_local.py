"""The local supervisor: what it says of children that will not live."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.telemetry import ProcessDied


def supervisor_with(
    emit: Callable[[Any], None], monotonic: Callable[[], float] = time.monotonic
) -> Supervisor:
    return Supervisor(emit=emit, notify_local=lambda: None, monotonic=monotonic)


async def test_a_child_that_ends_again_and_again_is_told_of() -> None:
    events: asyncio.Queue[Any] = asyncio.Queue()
    now = 1_000.0
    supervisor = supervisor_with(events.put_nowait, lambda: now)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        kept = group.create_task(supervisor.keep(Program("hopeless", "nightmill.no_such_module")))
        assert await events.get() == ProcessDied("hopeless", 1)
        assert supervisor.trouble is None, "a first end is mended by itself"
        await events.get()
        await asyncio.sleep(0)
        assert supervisor.trouble == "the hopeless process keeps ending, with 1; see the log"
        now += 60
        assert supervisor.trouble is None, "it has lived for a minute"
        await supervisor.drain(grace_s=5)
        await kept


async def test_what_a_child_says_is_told_until_it_takes_it_back() -> None:
    supervisor = supervisor_with(lambda _: None)
    program = Program("worker 0", "unused")
    supervisor._hear(program, b"!the upstream is paused: connection refused")
    assert supervisor.trouble == "the upstream is paused: connection refused"
    supervisor._hear(program, b"-")
    assert supervisor.trouble is None
