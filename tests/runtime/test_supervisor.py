"""The supervisor: what it reports of children that fail."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from nightmill.runtime.problems import Problems, problem
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.telemetry import ProcessDied, UpstreamHeld


def supervisor_with(
    emit: Callable[[Any], None], monotonic: Callable[[], float] = time.monotonic
) -> Supervisor:
    return Supervisor(emit=emit, notify_local=lambda: None, monotonic=monotonic)


async def test_a_child_that_exits_repeatedly_is_reported() -> None:
    events: asyncio.Queue[Any] = asyncio.Queue()
    now = 1_000.0
    supervisor = supervisor_with(events.put_nowait, lambda: now)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        kept = group.create_task(supervisor.run(Program("hopeless", "no such kind")))
        assert await events.get() == ProcessDied("hopeless", 1)
        assert supervisor.trouble is None, "a first exit is repaired by the restart"
        await events.get()
        await asyncio.sleep(0)
        assert supervisor.trouble == "the hopeless process keeps ending, with 1; see the log"
        now += 60
        assert supervisor.trouble is None, "the process has run for a minute"
        await supervisor.drain(grace_s=5)
        await kept


def test_a_child_that_exits_before_its_first_message_is_started_again() -> None:
    async def run() -> None:
        events: asyncio.Queue[Any] = asyncio.Queue()
        supervisor = supervisor_with(events.put_nowait)
        supervisor.close_start_barrier()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            kept = group.create_task(supervisor.run(Program("hopeless", "no such kind")))
            while not supervisor._children:  # noqa: ASYNC110 - it has no notification
                await asyncio.sleep(0.01)
            _, child = supervisor._children["hopeless"]
            await child.wait()
            supervisor.open_start_barrier()
            assert await events.get() == ProcessDied("hopeless", 1)
            assert await events.get() == ProcessDied("hopeless", 1)
            await supervisor.drain(grace_s=5)
            await kept

    # The loop of the server: its pipe refuses a write once the process has exited.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_a_process_whose_start_is_cancelled_is_started_whole_and_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, may_go_on, killed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start(*_: object) -> object:
        began.set()
        await may_go_on.wait()
        return SimpleNamespace(kill=killed.set)

    monkeypatch.setattr(Supervisor, "_start_process", start)
    async with asyncio.timeout(60):
        running = asyncio.create_task(supervisor_with(lambda _: None).run(Program("worker 0", "unused")))
        await began.wait()
        running.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert killed.is_set()


async def test_a_problem_that_a_child_reports_lasts_until_the_child_withdraws_it() -> None:
    supervisor = supervisor_with(lambda _: None)
    program = Program("worker 0", "unused")
    supervisor._receive(program, b"!" + problem("the disk is full").encoded())
    assert supervisor.trouble == "the disk is full"
    supervisor._receive(program, b"-")
    assert supervisor.trouble is None


def test_the_problems_of_several_children_are_merged() -> None:
    supervisor = supervisor_with(lambda _: None)
    held = UpstreamHeld("default", "m", "it answers 503", 1_000.0, 1_004.0)
    report = b"!" + Problems((held,)).encoded()
    supervisor._receive(Program("worker 0", "unused"), report)
    supervisor._receive(Program("worker 1", "unused"), report)
    supervisor._receive(Program("worker 2", "unused"), b"!{")
    assert supervisor.problems == Problems((held,))
    supervisor._receive(Program("worker 0", "unused"), b"-")
    assert supervisor.problems == Problems((held,))
    supervisor._receive(Program("worker 1", "unused"), b"-")
    assert supervisor.trouble is None
