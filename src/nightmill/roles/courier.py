"""The courier role: delivers webhooks that are due, and decides when a failed one is attempted again.

Any number of couriers may work on one store. A delivery is leased for one attempt and the lease outlives the
attempt, so two couriers never send it at the same time; a courier that dies leaves a lease that lapses. The
receiver may still get a delivery twice, with the same id: its answer can be lost.
"""

import asyncio
from typing import Final

from nightmill.core.clocks import Clocks
from nightmill.core.webhook import DeliveryAttempt, DeliveryState, WebhookEndpoint
from nightmill.core.webhook_url import place_of
from nightmill.ids import WorkerId
from nightmill.roles.loop import Notifier, plain
from nightmill.settings import WebhookSettings
from nightmill.store import Store
from nightmill.store.webhook_deliveries import LeasedDelivery
from nightmill.telemetry import Emit, RoleFailed, WebhookAttempted
from nightmill.webhooks.sender import WebhookSender
from nightmill.webhooks.signing import signed_headers

_LOOK_S: Final = 1.0
_AFTER_ATTEMPT_S: Final = 30.0
"""A lease outlives its attempt by so much; the report of the attempt must reach the store in it."""


class Courier:
    """The role that delivers webhooks. Attempts run beside the turns, so a slow receiver delays no other."""

    name = "courier"

    def __init__(
        self,
        *,
        store: Store,
        sender: WebhookSender,
        settings: WebhookSettings,
        worker_id: WorkerId,
        notifier: Notifier,
        emit: Emit,
        clocks: Clocks,
    ) -> None:
        self._deliveries = store.webhook_deliveries
        self._sender = sender
        self._settings = settings
        self._worker_id = worker_id
        self._notifier = notifier
        self._emit = emit
        self._clocks = clocks
        self._in_flight: set[asyncio.Task[None]] = set()

    async def turn(self) -> float:
        free = self._settings.concurrency - len(self._in_flight)
        if free <= 0 or not await self._deliveries.any_due():
            return _LOOK_S
        leased = await self._deliveries.lease(
            self._worker_id,
            most=free,
            per_endpoint=self._settings.per_endpoint,
            ttl_s=self._settings.timeout_s + _AFTER_ATTEMPT_S,
        )
        for one in leased:
            task = asyncio.create_task(self._deliver(one))
            self._in_flight.add(task)
            task.add_done_callback(self._is_done)
        return _LOOK_S

    async def drain(self, *, grace_s: float) -> None:
        try:
            if self._in_flight:
                await asyncio.wait(self._in_flight, timeout=grace_s)
        finally:
            for task in self._in_flight:
                task.cancel()
            self._sender.close()

    def _is_done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._notifier.notify_local()
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._emit(RoleFailed(self.name, plain(error)))

    async def _deliver(self, leased: LeasedDelivery) -> None:
        delivery, endpoint = leased.delivery, leased.endpoint
        if endpoint is None:
            await self._deliveries.finish(
                leased, state=DeliveryState.FAILED, next_at=leased.leased_at, attempt=None
            )
            return
        attempt = await self._attempt(leased, endpoint)
        # The next attempt is at a time of the store's clock, whatever this machine's clock says.
        ended_at = leased.leased_at + attempt.duration_s
        state, next_at = delivery.after(attempt, now=ended_at, random=self._clocks.random())
        if await self._deliveries.finish(leased, state=state, next_at=next_at, attempt=attempt):
            reason = attempt.error or f"it answers {attempt.status_code}"
            self._emit(
                WebhookAttempted(
                    delivery.id, delivery.event_type, place_of(endpoint.url), state.value, reason
                )
            )

    async def _attempt(self, leased: LeasedDelivery, endpoint: WebhookEndpoint) -> DeliveryAttempt:
        delivery, now = leased.delivery, self._clocks.wall()
        headers = signed_headers(
            delivery.payload, delivery_id=delivery.id, now=now, secrets=endpoint.secrets_at(leased.leased_at)
        )
        return await self._sender.post(endpoint.url, delivery.payload, headers, now=now)
