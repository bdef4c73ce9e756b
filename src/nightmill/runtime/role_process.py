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
from nightmill.upstream.connect import open_upstream

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
            settings, emit=_emit_to(parent), notifier=notifier, worker_id=worker_id
        ) as components,
        asyncio.TaskGroup() as group,
    ):
        following = group.create_task(commands.follow())
        limit_memory_use()
        async with asyncio.TaskGroup() as roles:
            for name in names:
                commands.roles.append(roles.create_task(_run_role(components, name, commands)))
        following.cancel()


def _emit_to(parent: Parent) -> telemetry.Emit:
    """Logs every event, and reports those to the parent that keep this process from its work."""

    def emit(event: telemetry.Event) -> None:
        telemetry.log(event)
        match event:
            case telemetry.UpstreamPaused(reason=reason, is_held=True):
                parent.report(f"the upstream answers no line: {reason}")
            case telemetry.UpstreamPaused(reason=reason):
                parent.report(f"the upstream is paused: {reason}")
            case telemetry.WritingPaused(reason=reason):
                parent.report(f"answers can't be written: {reason}")
            case telemetry.UpstreamResumed() | telemetry.WritingResumed():
                parent.report(None)
            case _:
                return

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
    url = components.settings.upstream.url
    assert url is not None
    upstream = open_upstream(components.settings.upstream, url=url)
    try:
        await components.worker(upstream).run(commands.stop, grace_s=commands.grace_s)
    finally:
        await upstream.close()
