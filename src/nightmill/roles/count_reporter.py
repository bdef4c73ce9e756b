"""Counts what a process does, and stores the sums for `/metrics`, which another process answers.

Sums are stored every few seconds if they have changed, and once more at the end of the process. A process
that is killed loses the counts of the last seconds; sums that were stored never fall.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from nightmill.core.batch import Batch, Status
from nightmill.core.counts import ProcessCounts
from nightmill.core.process_info import REPORTED_EVERY_S, ProcessInfo
from nightmill.core.webhook import DeliveryState
from nightmill.errors import UnavailableError
from nightmill.ids import WorkerId
from nightmill.store import Store
from nightmill.telemetry import BatchMoved, Emit, Event, WebhookAttempted

_INTERVAL_S: Final = 2.0


def counting(emit: Emit, counts: ProcessCounts) -> Emit:
    """A subscriber that counts events and passes them on."""

    def count_and_emit(event: Event) -> None:
        if isinstance(event, BatchMoved):
            _count_move(event.batch, counts)
        elif isinstance(event, WebhookAttempted):
            is_delivered = event.state == DeliveryState.DELIVERED
            counts.note_delivery("delivered" if is_delivered else "failed")
        emit(event)

    return count_and_emit


def _count_move(batch: Batch, counts: ProcessCounts) -> None:
    if batch.status is Status.IN_PROGRESS and batch.in_progress_at is not None:
        counts.note_intake(float(batch.in_progress_at - batch.created_at))
    elif batch.status is Status.FAILED and batch.failed_at is not None:
        counts.note_intake(float(batch.failed_at - batch.created_at))
    if batch.status.is_terminal:
        ended_at = batch.completed_at or batch.expired_at or batch.cancelled_at
        since = batch.finalizing_at or batch.cancelling_at
        finalizing_s = None if ended_at is None or since is None else float(ended_at - since)
        counts.note_end(batch.status.value, finalizing_s=finalizing_s)


class CountReporter:
    """Stores what one process counts.

    Args:
        process_id: the id under which the process takes leases.
        counts: taken from and set to zero at each report.
        info: what the process says of itself.
    """

    def __init__(
        self,
        store: Store,
        process_id: WorkerId,
        counts: ProcessCounts,
        *,
        monotonic: Callable[[], float],
        info: ProcessInfo | None = None,
    ) -> None:
        self._store = store
        self._process_id = process_id
        self._counts = counts
        self._monotonic = monotonic
        self._info = info
        self._is_known = False
        self._stored: ProcessCounts = ProcessCounts()
        self._unstored: ProcessCounts = ProcessCounts()
        self._stored_at = 0.0

    async def run(self) -> None:
        """Reports until it is cancelled. While the store is away the counts wait."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            with suppress(UnavailableError):
                await self.report()

    async def report(self) -> None:
        """Stores the sums if they have changed, or were stored long ago."""
        self._unstored.add(self._counts.taken())
        total = ProcessCounts()
        total.add(self._stored)
        total.add(self._unstored)
        now = self._monotonic()
        if self._is_known and total == self._stored and now < self._stored_at + REPORTED_EVERY_S:
            return
        report = self._store.counts.report
        if not await report(self._process_id, total, is_first=not self._is_known, info=self._info):
            # The process was stopped for so long that its sums are those of an ended process.
            total = self._unstored
            await report(self._process_id, total, is_first=True, info=self._info)
        self._is_known, self._stored_at = True, now
        self._stored, self._unstored = total, ProcessCounts()
