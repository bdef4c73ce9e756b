"""Takes back lapsed leases, ends overdue batches, removes what has expired.

Promise: each look is cheap and can be repeated by any number of wardens at once; whatever it leaves undone
the next look does. Not its duty: finalizing (it only moves an overdue batch on).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from nightmill.blobs import Blobs
from nightmill.core.batch import Event
from nightmill.errors import UnavailableError
from nightmill.failpoints import failpoint
from nightmill.parts import Parts
from nightmill.roles.loop import Notifier
from nightmill.roles.orphan_blobs import OrphanSweep
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.telemetry import BatchMoved, Emit

_LOOK_S = 1.0


class Maintenance:
    """Args:
    deleting: whether bytes may be deleted within; a backup or a check may be reading them.
    """

    name = "warden"

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        parts: Parts,
        settings: Settings,
        notifier: Notifier,
        emit: Emit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        deleting: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._parts = parts
        self._sweep_s = settings.retention.sweep_s
        self._audit_ttl_s = settings.audit.ttl_s
        self._notifier = notifier
        self._emit = emit
        self._clock = clock
        self._monotonic = monotonic
        self._deleting = deleting
        self._next_sweep = 0.0
        self._lease_ttl_s = settings.worker.lease_ttl_s
        self._healthy_since: float | None = None
        self._seen_at = 0.0
        self._orphans = OrphanSweep(store=store, blobs=blobs, monotonic=monotonic)

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
            self._next_sweep = self._monotonic() + self._sweep_s
            await self._sweep()
        self._seen_at = self._monotonic()
        return min(_LOOK_S, self._sweep_s)

    async def _reap(self) -> int:
        """After an outage every lease looks lapsed: holders get as long as one lasts to be heard again.

        What this warden did not see, because it was frozen or has just begun, may have been an outage.
        """
        now = self._monotonic()
        if self._healthy_since is None or now - self._seen_at > self._lease_ttl_s:
            self._healthy_since = now
        self._seen_at = now
        if now - self._healthy_since < self._lease_ttl_s:
            return 0
        return await self._store.segments.release_expired()

    async def _end_overdue_batches(self) -> int:
        moved = 0
        for batch in await self._store.batches.overdue():
            after = batch.after(Event.LAPSED, now=self._clock())
            failpoint("maintenance.before_lapse")
            if await self._store.batches.move(after, expected=batch.status):
                failpoint("maintenance.lapsed")
                self._emit(BatchMoved(after))
                moved += 1
        return moved

    async def _sweep(self) -> None:
        await self._store.uploads.expire()
        while await self._store.files.delete_expired():
            pass
        if self._audit_ttl_s:
            await self._store.audit.delete_older(kept_s=self._audit_ttl_s)
        with self._deleting() as may_delete:
            if may_delete:
                await self._delete_unused()
                if self._orphans.is_due:
                    await self._orphans.look()

    async def _delete_unused(self) -> None:
        while keys := await self._store.blob_references.unused():
            for key in keys:
                await self._blobs.delete(key)
            failpoint("maintenance.before_forget")
            await self._store.blob_references.remove(keys)
            failpoint("maintenance.forgotten")
        batch_ids = await self._parts.batches()
        for batch_id in await self._store.batches.ended(batch_ids) if batch_ids else ():
            failpoint("maintenance.before_parts")
            await self._parts.delete(batch_id)
            failpoint("maintenance.parts_deleted")
