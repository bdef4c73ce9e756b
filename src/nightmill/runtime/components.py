"""Opens the store, the blobs and the parts a process needs, and makes its roles.

Promise: what is opened is closed, in the opposite order. Not its duty: which process runs which role.
"""

import random
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

from nightmill.admin.delete_lock import may_delete
from nightmill.blobs import PiecedBlobs
from nightmill.core.circuit_breaker import CircuitBreaker
from nightmill.core.clocks import Clocks
from nightmill.ids import WorkerId, new_worker_id
from nightmill.parts import Parts
from nightmill.roles.finalizer import Finalizer
from nightmill.roles.intake import Intake
from nightmill.roles.join import Joiner
from nightmill.roles.loop import Notifier
from nightmill.roles.maintenance import Maintenance
from nightmill.roles.worker import Worker
from nightmill.runtime.clocks import steady_clock
from nightmill.runtime.storage import open_storage, open_stored
from nightmill.runtime.upstreams import shared_name
from nightmill.settings import Settings
from nightmill.store import Store
from nightmill.telemetry import Emit
from nightmill.upstream import Upstream


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

    def intake(self) -> Intake:
        return Intake(
            store=self.store,
            blobs=self.blobs,
            settings=self.settings,
            worker_id=self.worker_id,
            notifier=self.notifier,
            emit=self.emit,
            clock=steady_clock,
        )

    def finalizer(self) -> Finalizer:
        joiner = Joiner(store=self.store, blobs=self.blobs, parts=self.parts, monotonic=time.monotonic)
        return Finalizer(
            store=self.store,
            blobs=self.blobs,
            joiner=joiner,
            settings=self.settings,
            worker_id=self.worker_id,
            notifier=self.notifier,
            emit=self.emit,
            clock=steady_clock,
        )

    def maintenance(self) -> Maintenance:
        # Only bytes in the folder can be backed up or checked there; with a bucket it may not be writable.
        keeps_folder = self.settings.blobs.url is None
        return Maintenance(
            store=self.store,
            blobs=self.blobs,
            parts=self.parts,
            settings=self.settings,
            notifier=self.notifier,
            emit=self.emit,
            clocks=Clocks(steady_clock, time.monotonic, random.random),
            deleting=lambda: may_delete(self.settings.folder) if keeps_folder else nullcontext(True),
        )

    def worker(self, upstream: Upstream, *, slots: int | None = None) -> Worker:
        return Worker(
            store=self.store,
            blobs=self.blobs,
            parts=self.parts,
            upstream=upstream,
            breaker=CircuitBreaker(),
            settings=self.settings,
            slots=slots or self.settings.upstream.concurrency,
            upstream_name=shared_name(self.settings.upstream.url or "", host=socket.gethostname()),
            worker_id=self.worker_id,
            request_prefix=secrets.token_hex(12),
            notifier=self.notifier,
            emit=self.emit,
            clock=steady_clock,
            monotonic=time.monotonic,
            random=random.random,
        )


@asynccontextmanager
async def open_components(
    settings: Settings, *, emit: Emit, notifier: Notifier, worker_id: WorkerId | None = None
) -> AsyncGenerator[Components]:
    """Args:
    worker_id: who leases; whoever starts a process gives it one, to take its leases back when it dies.
    """
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
                emit,
                worker_id or new_worker_id(secrets.token_bytes(16)),
            )
        finally:
            try:
                await parts.close()
            finally:
                await blobs.close()
    finally:
        await store.close()
