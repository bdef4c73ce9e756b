"""A child process that runs roles: kind `roles`, arguments WORKER_ID ROLE....

The first message is the settings as JSON. The process drains on SIGTERM and when its parent asks. After the
exit of its parent it lives for a second at most, because the parent's successor has released its leases.
"""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from typing import Final

from nightmill import telemetry
from nightmill.ids import WorkerId
from nightmill.roles.loop import Notifier, Role, keep_turning
from nightmill.runtime.child import DRAIN, Parent
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.process_setup import (
    limit_memory_use,
    raise_open_file_limit,
    run_event_loop,
    start_logs,
)
from nightmill.settings import Settings, from_message
from nightmill.upstream.registry import open_upstreams

_ORPHAN_GRACE_S: Final = 0.5
_ORPHAN_END_S: Final = 1.0


class _ParentCommands:
    """Acts on what the parent sends: wakes the roles, drains them, and stops them after the parent's exit."""

    def __init__(self, parent: Parent, notifier: Notifier, *, grace_s: float) -> None:
        self.roles: list[asyncio.Task[None]] = []
        self.stop = asyncio.Event()
        self._parent = parent
        self._notifier = notifier
        self._grace_s = grace_s

    def grace_s(self) -> float:
        return self._grace_s

    async def follow(self) -> None:
        async for received in self._parent.messages():
            if DRAIN in received:
                self.stop.set()
            self._notifier.notify_local()
        self._grace_s = min(self._grace_s, _ORPHAN_GRACE_S)
        self.drain()
        await asyncio.sleep(_ORPHAN_END_S)
        for role in self.roles:
            role.cancel()

    def drain(self) -> None:
        self.stop.set()
        self._notifier.notify_local()


def run(message: str, arguments: Sequence[str], parent: Parent) -> int:
    """Runs the roles until they are drained; returns the exit code.

    Args:
        arguments: the id under which the process takes leases, then the names of its roles.
    """
    settings = from_message(message)
    start_logs(settings.log_level)
    raise_open_file_limit()
    run_event_loop(_run_roles(settings, WorkerId(arguments[0]), arguments[1:], parent))
    return 0


async def _run_roles(settings: Settings, worker_id: WorkerId, names: Sequence[str], parent: Parent) -> None:
    notifier = Notifier(parent.notify)
    commands = _ParentCommands(parent, notifier, grace_s=settings.api.drain_s)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, commands.drain)
    async with (
        open_components(
            settings, emit=log_and_report(parent.report), notifier=notifier, worker_id=worker_id
        ) as components,
        asyncio.TaskGroup() as group,
    ):
        following = group.create_task(commands.follow())
        limit_memory_use()
        async with asyncio.TaskGroup() as roles:
            for name in names:
                commands.roles.append(roles.create_task(_run_role(components, name, commands)))
        following.cancel()


def log_and_report(report: Callable[[str | None], None]) -> telemetry.Emit:
    """Logs every event, and reports what keeps this process from its work.

    Args:
        report: called with all problems that last, or None, after each event that begins or ends one.
    """
    problems: dict[tuple[str | None, ...], str] = {}

    def emit(event: telemetry.Event) -> None:
        telemetry.log(event)
        match event:
            case telemetry.UpstreamHeld(upstream, model):
                problems["upstream", upstream, model] = telemetry.held_text(event)
            case telemetry.UpstreamResumed(upstream, model):
                problems.pop(("upstream", upstream, model), None)
            case telemetry.WritingPaused(reason):
                problems["writing",] = f"answers can't be written: {reason}"
            case telemetry.WritingResumed():
                problems.pop(("writing",), None)
            case _:
                return
        report("; ".join(problems.values()) or None)

    return emit


async def _run_role(components: Components, name: str, commands: _ParentCommands) -> None:
    if name.startswith("worker:"):
        await _run_worker(components, commands)
        return
    make: Callable[[], Role] = getattr(components, name)  # see `roles.registry`
    await keep_turning(
        make(),
        notifier=components.notifier,
        stop=commands.stop,
        emit=components.emit,
        random=random.random,
    )


async def _run_worker(components: Components, commands: _ParentCommands) -> None:
    async with open_upstreams(components.settings) as upstreams:
        await components.worker(upstreams).run(commands.stop, grace_s=commands.grace_s)
