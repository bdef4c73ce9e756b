"""Stops batches that have spent a budget: failures, output tokens or cost.

A stopped batch is cancelled like one that a client cancels, so its answers so far are in its files. A budget
is overrun by what is answered until the workers have reported (`worker.beat_s`), the watch has looked (a
second) and the workers have seen the end: about two seconds of answers, and the lines in flight then.
"""

from collections.abc import Callable, Mapping

from nightmill.core.batch import Batch, Event
from nightmill.core.prices import Price, price_of, spent_budget
from nightmill.roles.loop import Notifier
from nightmill.store import Store
from nightmill.telemetry import BatchMoved, Emit


class BudgetWatch:
    """Looks at every batch that has a budget and is at work.

    Args:
        prices: of tokens, by model.
        wall: Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        prices: Mapping[str, Price],
        notifier: Notifier,
        emit: Emit,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._prices = prices
        self._notifier = notifier
        self._emit = emit
        self._wall = wall

    async def look(self) -> None:
        has_stopped = False
        for batch in await self._store.batches.at_work_with_options():
            reason = spent_budget(batch, cost=self._cost(batch))
            if reason is None:
                continue
            after = batch.after(Event.CANCEL_REQUESTED, now=self._wall())
            if await self._store.batches.stop(after, reason, expected=batch.status):
                self._emit(BatchMoved(after))
                has_stopped = True
        if has_stopped:
            self._notifier.notify()

    def _cost(self, batch: Batch) -> float | None:
        price = price_of(self._prices, batch.model)
        return None if price is None else price.cost(batch.tally.usage)
