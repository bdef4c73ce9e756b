"""Adapts any upstream to `Attempts`, with one task per attempt where the upstream has no callbacks of its
own.
"""

import asyncio
from collections.abc import Callable

from nightmill.core.outcome import Outcome
from nightmill.upstream.port import Attempts, Tag, Upstream


def attempts_of(upstream: Upstream, *, group: asyncio.TaskGroup) -> Attempts:
    """The upstream itself if it calls back, else an adapter whose tasks run in `group`."""
    return upstream if isinstance(upstream, Attempts) else TaskAttempts(upstream, group)


class TaskAttempts:
    """Attempts as tasks that await `Upstream.send`."""

    def __init__(self, upstream: Upstream, group: asyncio.TaskGroup) -> None:
        self._upstream = upstream
        self._group = group
        self._tasks: dict[object, asyncio.Task[None]] = {}

    def start(
        self,
        tag: Tag,
        endpoint: str,
        body: bytes,
        *,
        timeout_s: float,
        on_outcome: Callable[[Tag, Outcome], None],
    ) -> None:
        async def attempt() -> None:
            outcome = await self._upstream.send(endpoint, body, timeout_s=timeout_s)
            del self._tasks[tag]
            on_outcome(tag, outcome)

        self._tasks[tag] = self._group.create_task(attempt())

    def give_up(self, tag: object) -> None:
        task = self._tasks.pop(tag, None)
        if task is not None:
            task.cancel()
