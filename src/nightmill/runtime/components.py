"""Opens the store, the blobs and the parts a process needs, and makes its roles.

What is opened is closed, in the opposite order. Which process runs which role belongs to `programs` and
`child_main`.
"""

import os
import random
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import nightmill
from nightmill.admin.delete_lock import may_delete
from nightmill.blobs import PiecedBlobs
from nightmill.core.clocks import Clocks
from nightmill.core.counts import ProcessCounts
from nightmill.core.process_info import ProcessInfo
from nightmill.ids import WorkerId, new_worker_id
from nightmill.parts import Parts
from nightmill.roles.batch_watches import SampleWatch, WhyWatch
from nightmill.roles.budgets import BudgetWatch
from nightmill.roles.canary_watch import CanaryWatch
from nightmill.roles.count_reporter import CountReporter, counting
from nightmill.roles.courier import Courier
from nightmill.roles.finalizer import Finalizer, FinalizerOptions
from nightmill.roles.intake import Intake, IntakeOptions
from nightmill.roles.join import Joiner
from nightmill.roles.loop import Notifier
from nightmill.roles.maintenance import Maintenance, MaintenanceOptions
from nightmill.roles.observer import Observer
from nightmill.roles.offered_models import offered_models
from nightmill.roles.upstream_manager import UpstreamManager
from nightmill.roles.upstream_samples import UpstreamSampleWatch
from nightmill.roles.worker import Storage, Worker
from nightmill.runtime.steady_clock import steady_clock
from nightmill.runtime.storage import open_storage, open_stored
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.telemetry import Emit
from nightmill.upstream import Upstream
from nightmill.upstream.registry import UpstreamRegistry
from nightmill.webhooks.sender import WebhookSender

CLOCKS = Clocks(wall=steady_clock, monotonic=time.monotonic, random=random.random)


@dataclass(frozen=True, slots=True)
class Components:
    """What the roles of one process share."""

    settings: Settings
    store: Store
    blobs: PiecedBlobs
    parts: Parts
    notifier: Notifier
    emit: Emit
    worker_id: WorkerId
    counts: ProcessCounts = field(default_factory=ProcessCounts)
    traced: Callable[[str, Upstream], Upstream] = field(default=lambda _, client: client)

    def intake(self) -> Intake:
        return Intake(
            store=self.store,
            blobs=self.blobs,
            options=intake_options(self.settings, store=self.store),
            worker_id=self.worker_id,
            notifier=self.notifier,
            emit=self.emit,
            clock=steady_clock,
        )

    def finalizer(self) -> Finalizer:
        joiner = Joiner(store=self.store, blobs=self.blobs, parts=self.parts, monotonic=CLOCKS.monotonic)
        return Finalizer(
            store=self.store,
            blobs=self.blobs,
            joiner=joiner,
            options=finalizer_options(self.settings),
            worker_id=self.worker_id,
            notifier=self.notifier,
            emit=self.emit,
            clocks=CLOCKS,
        )

    def maintenance(self) -> Maintenance:
        # Only bytes in the folder can be backed up or checked there; with a bucket it may not be writable.
        keeps_folder = self.settings.blobs.url is None
        return Maintenance(
            store=self.store,
            blobs=self.blobs,
            parts=self.parts,
            options=maintenance_options(self.settings),
            notifier=self.notifier,
            emit=self.emit,
            clocks=CLOCKS,
            deleting=lambda: may_delete(self.settings.folder) if keeps_folder else nullcontext(True),
        )

    def observer(self) -> Observer:
        return Observer(
            (
                self.canary_watch(),
                self.budget_watch(),
                SampleWatch(self.store, self.settings, wall=CLOCKS.wall),
                UpstreamSampleWatch(self.store, wall=CLOCKS.wall),
                WhyWatch(self.store, self.settings, emit=self.emit, wall=CLOCKS.wall),
            )
        )

    def courier(self) -> Courier:
        sender = WebhookSender(self.settings.webhooks, monotonic=CLOCKS.monotonic)
        return Courier(
            store=self.store,
            sender=sender,
            settings=self.settings.webhooks,
            worker_id=self.worker_id,
            notifier=self.notifier,
            emit=self.emit,
            clocks=CLOCKS,
        )

    def canary_watch(self) -> CanaryWatch:
        return CanaryWatch(store=self.store, notifier=self.notifier, emit=self.emit, clock=steady_clock)

    def budget_watch(self) -> BudgetWatch:
        return BudgetWatch(
            self.store,
            prices=self.settings.token_prices,
            notifier=self.notifier,
            emit=self.emit,
            wall=CLOCKS.wall,
        )

    def upstream_manager(self) -> UpstreamManager:
        return UpstreamManager(
            self.settings,
            store=self.store,
            worker_id=self.worker_id,
            emit=self.emit,
            clocks=CLOCKS,
            counts=self.counts,
            traced=self.traced,
        )

    def count_reporter(self, roles: Sequence[str] = ()) -> CountReporter:
        """Args:
        roles: the names of the roles of this process.
        """
        info = ProcessInfo(
            socket.gethostname(),
            os.getpid(),
            tuple(name.partition(":")[0] for name in roles),
            nightmill.__version__,
            CLOCKS.wall(),
        )
        return CountReporter(self.store, self.worker_id, self.counts, monotonic=CLOCKS.monotonic, info=info)

    def worker(self, upstreams: UpstreamRegistry) -> Worker:
        return Worker(
            storage=Storage(self.store, self.blobs, self.parts),
            upstreams=upstreams,
            settings=self.settings.worker,
            worker_id=self.worker_id,
            request_prefix=secrets.token_hex(12),
            notifier=self.notifier,
            emit=self.emit,
            clocks=CLOCKS,
        )


@asynccontextmanager
async def open_components(
    settings: Settings, *, emit: Emit, notifier: Notifier, worker_id: WorkerId | None = None
) -> AsyncGenerator[Components]:
    """Opens what the roles of one process share.

    Args:
        worker_id: the holder of leases. A parent process passes one to its child, to release the child's
            leases when the child dies. None makes a new one.
    """
    counts = ProcessCounts()
    store = open_stored(settings)
    try:
        blobs, parts = open_storage(settings)
        try:
            yield Components(
                settings,
                store,
                blobs,
                parts,
                notifier,
                counting(emit, counts),
                worker_id or new_worker_id(secrets.token_bytes(16)),
                counts,
            )
        finally:
            try:
                await parts.close()
            finally:
                await blobs.close()
    finally:
        await store.close()


def intake_options(settings: Settings, *, store: Store) -> IntakeOptions:
    async def models_of(endpoint: str) -> frozenset[str]:
        return (await offered_models(store, settings)).required(endpoint)

    return IntakeOptions(
        limits=settings.limits,
        quota=settings.quota.limits,
        models_of=models_of,
        lines_per_segment=settings.worker.lines_per_segment,
        segment_bytes=settings.worker.segment_bytes,
        lease_ttl_s=settings.worker.lease_ttl_s,
    )


def finalizer_options(settings: Settings) -> FinalizerOptions:
    return FinalizerOptions(
        output_ttl_s=settings.limits.output_ttl_s, slice_bytes=settings.finalizer.slice_bytes
    )


def maintenance_options(settings: Settings) -> MaintenanceOptions:
    return MaintenanceOptions(
        sweep_s=settings.retention.sweep_s,
        audit_ttl_s=settings.audit.ttl_s,
        lease_ttl_s=settings.worker.lease_ttl_s,
        deliveries_kept_s=settings.webhooks.kept_s,
        rows_kept_s=settings.retention.rows_kept_s,
    )
