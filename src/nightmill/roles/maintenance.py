"""Takes back lapsed leases, ends overdue batches, deletes expired files, unused blobs and parts, and
adds up the counts of batches.

Each turn is cheap. Any number of processes may run this role at once, and a turn that was cut short is
completed by the next. Finalizing is the finalizer's work: an overdue batch only changes its status here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from nightmill.blobs import Blobs
from nightmill.core.batch import Event
from nightmill.core.clocks import Clocks
from nightmill.errors import UnavailableError
from nightmill.failpoints import failpoint
from nightmill.parts import Parts
from nightmill.roles.loop import Notifier
from nightmill.roles.orphan_blobs import OrphanSweep
from nightmill.store import Store
from nightmill.store.batch_counts import FOLDED_AT_ONCE
from nightmill.telemetry import BatchMoved, Emit

_LOOK_S = 1.0
_REPORTS_KEPT_S = 600.0
"""Workers report every few seconds; a report so old is of a worker that is gone."""

_ROW_SWEEP_S = 3_600.0
"""Old rows are searched for without an index, and none of them is urgent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceOptions:
    """What maintenance takes from the settings.

    Attributes:
        sweep_s: seconds between two searches for what has expired.
        audit_ttl_s: the age in seconds at which an entry of the audit log is removed; 0 keeps all.
        lease_ttl_s: the length of a worker's lease.
        deliveries_kept_s: the age in seconds at which a delivery of a webhook that has ended is removed.
        rows_kept_s: the age in seconds at which rows of ended batches and deleted files are removed; 0 keeps
            all.
    """

    sweep_s: float
    audit_ttl_s: int
    lease_ttl_s: float
    deliveries_kept_s: int
    rows_kept_s: int = 0


class Maintenance:
    """The role that ends what is overdue and deletes what is no longer needed.

    Args:
        deleting: a context whose value says whether bytes may be deleted inside; a backup or a check may be
            reading them.
    """

    name = "maintenance"

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        parts: Parts,
        options: MaintenanceOptions,
        notifier: Notifier,
        emit: Emit,
        clocks: Clocks,
        deleting: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._parts = parts
        self._options = options
        self._notifier = notifier
        self._emit = emit
        self._clock = clocks.wall
        self._monotonic = clocks.monotonic
        self._deleting = deleting
        self._next_sweep = 0.0
        self._next_row_sweep = 0.0
        self._healthy_since: float | None = None
        self._seen_at = 0.0
        self._orphans = OrphanSweep(store=store, blobs=blobs, monotonic=clocks.monotonic)

    async def turn(self) -> float:
        try:
            reaped = await self._reap()
            lapsed = await self._end_overdue_batches()
        except UnavailableError:
            self._healthy_since = None
            raise
        if reaped or lapsed:
            self._notifier.notify()
        if self._monotonic() >= self._next_sweep:
            self._next_sweep = self._monotonic() + self._options.sweep_s
            await self._sweep()
        self._seen_at = self._monotonic()
        return min(_LOOK_S, self._options.sweep_s)

    async def _reap(self) -> int:
        """Takes back lapsed leases; returns their number.

        After an outage of the store every lease looks lapsed. Holders therefore get the length of a lease to
        renew it before any is taken back. A gap between two turns (this process was frozen, or has just
        started) may hide an outage and counts as one.
        """
        now = self._monotonic()
        if self._healthy_since is None or now - self._seen_at > self._options.lease_ttl_s:
            self._healthy_since = now
        self._seen_at = now
        if now - self._healthy_since < self._options.lease_ttl_s:
            return 0
        return await self._store.segments.release_expired()

    async def _end_overdue_batches(self) -> int:
        moved = 0
        for batch in await self._store.batches.overdue():
            after = batch.after(Event.LAPSED, now=self._clock())
            failpoint("maintenance.before_lapse")
            if await self._store.batches.lapse(after):
                failpoint("maintenance.lapsed")
                self._emit(BatchMoved(after))
                moved += 1
        return moved

    async def _sweep(self) -> None:
        await self._store.uploads.expire()
        while await self._store.files.delete_expired():
            pass
        if self._options.audit_ttl_s:
            await self._store.audit.delete_older(kept_s=self._options.audit_ttl_s)
        await self._store.upstreams.delete_old_reports(max_age_s=_REPORTS_KEPT_S)
        while await self._store.webhook_deliveries.delete_old(kept_s=self._options.deliveries_kept_s):
            pass
        await self._store.counts.end_silent(max_age_s=_REPORTS_KEPT_S)
        while await self._store.batch_counts.fold() == FOLDED_AT_ONCE:
            pass
        if self._options.rows_kept_s and self._monotonic() >= self._next_row_sweep:
            self._next_row_sweep = self._monotonic() + _ROW_SWEEP_S
            await self._remove_rows(self._options.rows_kept_s)
        with self._deleting() as may_delete:
            if may_delete:
                await delete_unused_bytes(self._store, self._blobs, self._parts)
                if self._orphans.is_due:
                    await self._orphans.sweep()

    async def _remove_rows(self, kept_s: int) -> None:
        while await self._store.pruning.remove_batches(kept_s=kept_s):
            pass
        while await self._store.pruning.remove_tombstones(kept_s=kept_s):
            pass


async def delete_unused_bytes(store: Store, blobs: Blobs, parts: Parts) -> int:
    """Deletes blobs and parts that no row needs any more, and their references; returns the number of blobs.

    Blobs that no row references at all belong to `orphan_blobs`. No backup may be reading (`delete_lock`).
    A blob is deleted before its reference is removed, so a process that dies between leaves nothing behind.
    """
    deleted = 0
    while keys := await store.blob_references.unused():
        for key in keys:
            await blobs.delete(key)
        failpoint("maintenance.before_forget")
        await store.blob_references.remove(keys)
        failpoint("maintenance.forgotten")
        deleted += len(keys)
    batch_ids = await parts.batches()
    for batch_id in await store.batches.ended(batch_ids) if batch_ids else ():
        failpoint("maintenance.before_parts")
        await parts.delete(batch_id)
        failpoint("maintenance.parts_deleted")
    return deleted
