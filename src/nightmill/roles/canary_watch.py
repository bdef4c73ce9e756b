"""Decides the canaries of running batches: the other lines are sent, or the batch is stopped."""

from collections.abc import Callable
from dataclasses import replace

from nightmill.core.batch import Event
from nightmill.core.canary import CanaryState
from nightmill.roles.loop import Notifier
from nightmill.store import Store
from nightmill.telemetry import BatchMoved, Emit


class CanaryWatch:
    """A watch of the observer. Of several observers that see the same canary, one decides.

    Args:
        clock: Unix seconds, for the stamps of batches.
    """

    def __init__(self, *, store: Store, notifier: Notifier, emit: Emit, clock: Callable[[], float]) -> None:
        self._store = store
        self._notifier = notifier
        self._emit = emit
        self._clock = clock

    async def look(self) -> None:
        has_decided = False
        for batch, canary in await self._store.canaries.running():
            match canary.state:
                case CanaryState.STOPPED:
                    after = replace(
                        batch.after(Event.CANCEL_REQUESTED, now=self._clock()), stop_reason=canary.stop_reason
                    )
                    if await self._store.canaries.stop(after, canary):
                        self._emit(BatchMoved(after))
                        has_decided = True
                case CanaryState.PASSED:
                    has_decided |= await self._store.canaries.let_pass(batch, canary)
                case _:
                    pass
        if has_decided:
            self._notifier.notify()
