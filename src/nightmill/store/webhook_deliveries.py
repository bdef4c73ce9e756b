"""Deliveries of webhooks: leased by couriers, and listed for users.

A courier leases a delivery for one attempt. Its report names the token of the lease, so a courier that was
frozen changes nothing after another has leased the delivery.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Connection,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from nightmill.core.webhook import (
    RETRY_S,
    DeliveryAttempt,
    DeliveryState,
    WebhookDelivery,
    WebhookEndpoint,
)
from nightmill.errors import NotFoundError
from nightmill.ids import ProjectId, WorkerId
from nightmill.store.clock import now
from nightmill.store.paging import Page
from nightmill.store.rows import ROWS_AT_ONCE, columns_of
from nightmill.store.verbs import Verbs, read, write
from nightmill.store.webhook_schema import HAS_ENDED, IS_PENDING, webhook_delivery, webhook_endpoint
from nightmill.store.webhooks import ENDPOINT_COLUMNS, as_endpoint

_COLUMNS = columns_of(WebhookDelivery, webhook_delivery)
_NOT_LEASED: Final[dict[str, Any]] = {"worker_id": None, "lease_expires_at": None}
_IS_FREE = or_(webhook_delivery.c.worker_id.is_(None), webhook_delivery.c.lease_expires_at <= now())
_IS_DUE = (text(IS_PENDING), webhook_delivery.c.next_at <= now())

_ANY_DUE = select(exists().where(*_IS_DUE, _IS_FREE))
# Leased deliveries take the first places of their endpoint, so the bound holds for all couriers together.
_RANKED = (
    select(
        webhook_delivery.c.sequence,
        webhook_delivery.c.next_at,
        case((_IS_FREE, 1), else_=0).label("is_free"),
        func.row_number()
        .over(
            partition_by=webhook_delivery.c.endpoint_id,
            order_by=(
                case((_IS_FREE, 1), else_=0),
                webhook_delivery.c.next_at,
                webhook_delivery.c.sequence,
            ),
        )
        .label("place"),
    )
    .where(*_IS_DUE)
    .subquery()
)
_CANDIDATES = (
    select(_RANKED.c.sequence)
    .where(_RANKED.c.is_free == 1, _RANKED.c.place <= bindparam("per_endpoint"))
    .order_by(_RANKED.c.next_at, _RANKED.c.sequence)
    .limit(bindparam("most"))
)
_CHOSEN = webhook_delivery.c.sequence.in_(bindparam("sequences", expanding=True))
_LOCK = (
    select(webhook_delivery.c.sequence)
    .where(_CHOSEN, *_IS_DUE, _IS_FREE)
    .order_by(webhook_delivery.c.sequence)
    .with_for_update(skip_locked=True)
)
_LEASE = (
    update(webhook_delivery)
    .where(_CHOSEN)
    .values(
        token=webhook_delivery.c.token + 1,
        worker_id=bindparam("new_worker_id"),
        lease_expires_at=now() + bindparam("ttl_s"),
    )
    .returning(*_COLUMNS, webhook_delivery.c.token, now().label("leased_at"))
)
_ENDPOINTS = select(*ENDPOINT_COLUMNS).where(
    webhook_endpoint.c.id.in_(bindparam("endpoint_ids", expanding=True)),
    webhook_endpoint.c.deleted_at.is_(None),
)
_FINISH = (
    update(webhook_delivery)
    .where(
        webhook_delivery.c.id == bindparam("of_delivery_id"),
        webhook_delivery.c.token == bindparam("held_token"),
        webhook_delivery.c.worker_id.is_not(None),
    )
    .values(
        state=bindparam("new_state"),
        attempt_count=webhook_delivery.c.attempt_count + bindparam("more_attempts"),
        attempts=bindparam("new_attempts"),
        next_at=bindparam("new_next_at"),
        **_NOT_LEASED,
    )
)
_RELEASE_ALL = (
    update(webhook_delivery)
    .where(text(IS_PENDING), webhook_delivery.c.worker_id.is_not(None))
    .values(_NOT_LEASED)
)
_RELEASE_OF_WORKER = _RELEASE_ALL.where(webhook_delivery.c.worker_id == bindparam("holder"))

_OF_ENDPOINT = (
    select(*_COLUMNS, webhook_delivery.c.sequence)
    .where(webhook_delivery.c.endpoint_id == bindparam("of_endpoint_id"))
    .order_by(webhook_delivery.c.sequence.desc())
    .limit(bindparam("page_rows"))
)
_SEQUENCE = select(webhook_delivery.c.sequence).where(
    webhook_delivery.c.id == bindparam("of_delivery_id"),
    webhook_delivery.c.endpoint_id == bindparam("of_endpoint_id"),
)
_IN_PROJECT = exists().where(
    webhook_endpoint.c.id == webhook_delivery.c.endpoint_id,
    webhook_endpoint.c.project_id == bindparam("of_project_id"),
    webhook_endpoint.c.deleted_at.is_(None),
)
_ONE = select(*_COLUMNS).where(webhook_delivery.c.id == bindparam("of_delivery_id"), _IN_PROJECT)
_RESEND = (
    update(webhook_delivery)
    .where(webhook_delivery.c.id == bindparam("of_delivery_id"), _IN_PROJECT, _IS_FREE)
    .values(
        state=DeliveryState.PENDING.value,
        attempt_count=0,
        next_at=now(),
        retry_until=now() + RETRY_S,
        **_NOT_LEASED,
    )
)
_OLD = (
    select(webhook_delivery.c.sequence)
    .where(text(HAS_ENDED), webhook_delivery.c.created_at <= now() - bindparam("kept_s"))
    .limit(ROWS_AT_ONCE)
)
_DELETE_OLD = delete(webhook_delivery).where(webhook_delivery.c.sequence.in_(_OLD))


class LeasedDelivery(NamedTuple):
    """A delivery for one attempt, and where it goes.

    `endpoint` is None when it was deleted meanwhile; `leased_at` is Unix seconds of the store's clock.
    """

    delivery: WebhookDelivery
    endpoint: WebhookEndpoint | None
    token: int
    leased_at: float


class WebhookDeliveries(Verbs):
    """What is to be delivered, and what became of it."""

    @read
    @staticmethod
    def any_due(connection: Connection) -> bool:
        """Whether a delivery waits for an attempt now."""
        return bool(connection.execute(_ANY_DUE).scalar_one())

    @write
    @staticmethod
    def lease(
        connection: Connection, worker_id: WorkerId, *, most: int, per_endpoint: int, ttl_s: float
    ) -> Sequence[LeasedDelivery]:
        """Leases deliveries that are due, those that wait for longest first.

        Args:
            most: of all endpoints together.
            per_endpoint: of one endpoint, with those that are leased already.
        """
        chosen = connection.execute(_CANDIDATES, {"most": most, "per_endpoint": per_endpoint}).scalars().all()
        if not chosen:
            return ()
        locked = connection.execute(_LOCK, {"sequences": chosen}).scalars().all()
        if not locked:
            return ()
        given = {"sequences": locked, "new_worker_id": worker_id, "ttl_s": ttl_s}
        rows = connection.execute(_LEASE, given).all()
        wanted = sorted({row.endpoint_id for row in rows})
        found = [as_endpoint(row) for row in connection.execute(_ENDPOINTS, {"endpoint_ids": wanted})]
        endpoints = {endpoint.id: endpoint for endpoint in found}
        return [
            LeasedDelivery(_as_delivery(row), endpoints.get(row.endpoint_id), row.token, row.leased_at)
            for row in rows
        ]

    @write
    @staticmethod
    def finish(
        connection: Connection,
        leased: LeasedDelivery,
        *,
        state: DeliveryState,
        next_at: float,
        attempt: DeliveryAttempt | None,
    ) -> bool:
        """Ends the lease with the attempt. False when the lease was lost.

        Args:
            attempt: None when none was made.
        """
        delivery = leased.delivery
        attempts = delivery.attempts if attempt is None else delivery.with_attempt(attempt)
        given = {
            "of_delivery_id": delivery.id,
            "held_token": leased.token,
            "new_state": state.value,
            "more_attempts": 0 if attempt is None else 1,
            "new_attempts": msgspec.json.encode(attempts).decode(),
            "new_next_at": next_at,
        }
        return connection.execute(_FINISH, given).rowcount == 1

    @read
    @staticmethod
    def list(
        connection: Connection,
        endpoint_id: str,
        *,
        state: DeliveryState | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page[WebhookDelivery]:
        """Newest first.

        Raises:
            NotFoundError: the endpoint has no delivery `after`.
        """
        query, given = _OF_ENDPOINT, {"of_endpoint_id": endpoint_id, "page_rows": limit + 1}
        if state is not None:
            query = query.where(webhook_delivery.c.state == literal(state.value))
        if after is not None:
            key = {"of_delivery_id": after, "of_endpoint_id": endpoint_id}
            sequence = connection.execute(_SEQUENCE, key).scalar_one_or_none()
            if sequence is None:
                raise NotFoundError(
                    f"No webhook delivery found with id '{after}' to list after.", param="after"
                )
            query = query.where(webhook_delivery.c.sequence < bindparam("after_sequence"))
            given["after_sequence"] = sequence
        rows = connection.execute(query, given).all()
        return Page(tuple(_as_delivery(row) for row in rows[:limit]), has_more=len(rows) > limit)

    @write
    @staticmethod
    def resend(connection: Connection, project_id: ProjectId, delivery_id: str) -> WebhookDelivery | None:
        """Makes the delivery due now, whatever became of it, unless an attempt is in flight.

        None when the project has no such delivery.
        """
        given = {"of_delivery_id": delivery_id, "of_project_id": project_id}
        connection.execute(_RESEND, given)
        row = connection.execute(_ONE, given).one_or_none()
        return None if row is None else _as_delivery(row)

    @write
    @staticmethod
    def delete_old(connection: Connection, *, kept_s: float) -> int:
        """Deletes some of the ended deliveries that are older than `kept_s` seconds. Returns how many."""
        return connection.execute(_DELETE_OLD, {"kept_s": kept_s}).rowcount


def release_all(connection: Connection) -> None:
    connection.execute(_RELEASE_ALL)


def release_of(connection: Connection, worker_id: WorkerId) -> None:
    connection.execute(_RELEASE_OF_WORKER, {"holder": worker_id})


def _as_delivery(row: Sequence[Any]) -> WebhookDelivery:
    fields = {column.name: value for column, value in zip(_COLUMNS, row, strict=False)}
    attempts = fields["attempts"]
    fields["state"] = DeliveryState(fields["state"])
    fields["attempts"] = (
        () if attempts is None else msgspec.json.decode(attempts, type=tuple[DeliveryAttempt, ...])
    )
    return WebhookDelivery(**fields)
