"""A child process that runs roles: kind `roles`, arguments WORKER_ID ROLE....

The first message is the settings as JSON. The process drains on SIGTERM and when its parent asks. After the
exit of its parent it lives for a second at most, because the parent's successor has released its leases.
"""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId
from nightmill.roles.loop import Draining, Notifier, Role, keep_turning
from nightmill.roles.worker import Worker
from nightmill.runtime.child import DRAIN, Parent, level_in
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.logs import set_level, start_logs
from nightmill.runtime.problems import ProblemLog
from nightmill.runtime.process_setup import (
    limit_memory_use,
    raise_open_file_limit,
    run_event_loop,
)
from nightmill.settings import Settings, from_message

if TYPE_CHECKING:
    from nightmill.runtime.tracing.provider import Tracing

_ORPHAN_GRACE_S: Final = 0.5
_ORPHAN_END_S: Final = 1.0
_REFRESH_S: Final = 5.0
_LAST_REPORT_S: Final = 1.0


class _ParentCommands:
    """Acts on what the parent sends: wakes the roles, drains them, and stops them after the parent's exit."""

    def __init__(self, parent: Parent, notifier: Notifier, *, grace_s: float) -> None:
        self.roles: list[asyncio.Task[None]] = []
        self.stop = asyncio.Event()
        self.is_orphaned = False
        self._parent = parent
        self._notifier = notifier
        self._grace_s = grace_s

    def grace_s(self) -> float:
        return self._grace_s

    async def follow(self) -> None:
        async for received in self._parent.messages():
            if DRAIN in received:
                self.stop.set()
            if (level := level_in(received)) is not None:
                set_level(level)
            self._notifier.notify_local()
        self.is_orphaned = True
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
    role = " ".join(arguments[1:])
    start_logs(settings.log_level, settings.log_format, role=role, worker_id=arguments[0])
    raise_open_file_limit()
    run_event_loop(_run_roles(settings, WorkerId(arguments[0]), arguments[1:], parent))
    return 0


async def _run_roles(settings: Settings, worker_id: WorkerId, names: Sequence[str], parent: Parent) -> None:
    notifier = Notifier(parent.notify)
    commands = _ParentCommands(parent, notifier, grace_s=settings.api.drain_s)
    problems = ProblemLog(lambda lasting: parent.report(lasting.encoded()))
    tracing = _tracing(settings, worker_id, names)
    emit = problems.emit if tracing is None else tracing.subscribed(problems.emit)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, commands.drain)
    async with (
        open_components(settings, emit=emit, notifier=notifier, worker_id=worker_id) as components,
        asyncio.TaskGroup() as group,
    ):
        following = group.create_task(commands.follow())
        if tracing is not None:
            components = replace(components, traced=tracing.traced)  # noqa: PLW2901 - the same, with traces
        reporter = components.count_reporter(names)
        reporting = group.create_task(reporter.run())
        limit_memory_use()
        async with asyncio.TaskGroup() as roles:
            for name in names:
                commands.roles.append(roles.create_task(_run_role(components, name, commands, problems)))
        following.cancel()
        reporting.cancel()
        # The answers that are still queued are written below, and must not wait: once the parent has ended,
        # its successor may have leased the same lines.
        if not commands.is_orphaned:
            with suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(_LAST_REPORT_S):
                    await reporter.report()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)


def _tracing(settings: Settings, worker_id: WorkerId, names: Sequence[str]) -> "Tracing | None":
    if not settings.traces.enabled:
        return None
    from nightmill.runtime.tracing.provider import Tracing  # noqa: PLC0415 - an extra, and slow to load

    return Tracing(settings.traces, role=" ".join(names), instance=worker_id)


async def _run_role(
    components: Components, name: str, commands: _ParentCommands, problems: ProblemLog
) -> None:
    if name.startswith("worker:"):
        await _run_worker(components, commands, problems)
        return
    make: Callable[[], Role] = getattr(components, name)  # see `roles.registry`
    role = make()
    await keep_turning(
        role,
        notifier=components.notifier,
        stop=commands.stop,
        emit=components.emit,
        random=random.random,
    )
    if isinstance(role, Draining):
        await role.drain(grace_s=commands.grace_s())


async def _run_worker(components: Components, commands: _ParentCommands, problems: ProblemLog) -> None:
    manager = components.upstream_manager()
    async with manager.opened() as upstreams, asyncio.TaskGroup() as group:
        worker = components.worker(upstreams)
        beside = [
            group.create_task(_refresh(problems, worker)),
            group.create_task(manager.run(worker.upstreams)),
        ]
        await worker.run(commands.stop, grace_s=commands.grace_s)
        for task in beside:
            task.cancel()


async def _refresh(problems: ProblemLog, worker: Worker) -> None:
    """Keeps the parent's knowledge of next attempts current. This writes no log line."""
    while True:
        await asyncio.sleep(_REFRESH_S)
        problems.refresh(worker.held)
