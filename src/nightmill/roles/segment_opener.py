"""Opens leased segments: reads what earlier leases have answered, and the lines that are left."""

from collections.abc import Callable
from dataclasses import dataclass

from nightmill.blobs import Blobs
from nightmill.core.batch import Tally
from nightmill.core.segment import Lease, PinnedPart, SegmentReport
from nightmill.errors import UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import WorkerId
from nightmill.parts import Parts, standing_records
from nightmill.roles.leased_segment import LeasedSegment, read_segment
from nightmill.roles.registry import WORKER
from nightmill.store import Store
from nightmill.telemetry import Emit, LeaseWasLost, RoleFailed, SegmentLeased


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a worker finds its work and keeps its answers."""

    store: Store
    blobs: Blobs
    parts: Parts


class SegmentOpener:
    """Opens leased segments, each on its own: a damaged one does not delay the others.

    Attributes:
        lease_again_at: monotonic time before which no segment should be leased: one could not be read.
    """

    def __init__(
        self, storage: Storage, *, worker_id: WorkerId, emit: Emit, monotonic: Callable[[], float]
    ) -> None:
        self._store = storage.store
        self._blobs = storage.blobs
        self._parts = storage.parts
        self._worker_id = worker_id
        self._emit = emit
        self._monotonic = monotonic
        self.lease_again_at = 0.0

    async def opened(self, lease: Lease, confirmed_until: float) -> LeasedSegment | None:
        try:
            return await self._open(lease, confirmed_until)
        except Exception as error:  # noqa: BLE001 - a damaged segment must not delay those leased with it
            self._emit(RoleFailed(WORKER, error))
            return None  # the lease expires

    async def _open(self, lease: Lease, confirmed_until: float) -> LeasedSegment | None:
        segment = lease.segment
        self._emit(SegmentLeased(segment.batch_id, segment.number, lease.token))
        try:
            pinned, known, earlier = await self._found(lease)
            text, offset, lines = await read_segment(self._blobs, lease, known)
        except UnavailableError as error:
            self.lease_again_at = self._monotonic() + error.retry_after_s
            await self._store.segments.release(
                lease, SegmentReport(segment.batch_id, segment.number, lease.token, lease.tally), ()
            )
            raise
        if lease.token > 1:
            report = SegmentReport(segment.batch_id, segment.number, lease.token, earlier)
            failpoint("worker.before_pin")
            if not await self._store.segments.pin_parts(lease, pinned, report):
                self._emit(LeaseWasLost(segment.batch_id, segment.number, lease.token))
                return None
            failpoint("worker.pinned")
        return LeasedSegment(
            lease,
            writer=self._parts.open(segment, lease.token),
            text=text,
            offset=offset,
            lines=lines,
            pinned=pinned,
            earlier=earlier,
            confirmed_until=confirmed_until,
        )

    async def _found(self, lease: Lease) -> tuple[tuple[PinnedPart, ...], set[int], Tally]:
        """The parts of earlier tokens, the ordinals they answer, and their tally."""
        known: set[int] = set()
        earlier, pinned = Tally(), lease.pinned
        if lease.token > 1:
            found = await self._parts.find(lease.segment, below=lease.token, pinned=lease.pinned)
            pinned = tuple(found)
            async for record in standing_records(self._parts, pinned):
                known.add(record.ordinal)
                earlier = earlier.plus(record.tally)
        return pinned, known, earlier
