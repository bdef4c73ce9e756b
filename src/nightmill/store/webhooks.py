"""Endpoints of webhooks, and the outbox: what is to be sent is written with the move that it reports."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, tuple_, update

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.batch import Batch
from nightmill.core.webhook import (
    OLD_SECRET_KEPT_S,
    RETRY_S,
    DeliveryState,
    WebhookEndpoint,
    asks_for,
    delivery_id_of,
    event_id_of,
    event_type_of,
    payload_of,
)
from nightmill.errors import RequestError
from nightmill.ids import ProjectId
from nightmill.store import audit
from nightmill.store.clock import now, stamp
from nightmill.store.paging import Page, named_place, page_of, place
from nightmill.store.rows import columns_of, insert_if_absent, row_of
from nightmill.store.verbs import Verbs, read, write
from nightmill.store.webhook_schema import webhook_delivery, webhook_endpoint

ENDPOINT_COLUMNS = columns_of(WebhookEndpoint, webhook_endpoint)
_IS_LIVE = webhook_endpoint.c.deleted_at.is_(None)
_IN_PROJECT = webhook_endpoint.c.project_id == bindparam("of_project_id")
_IS_ONE = (_IN_PROJECT, webhook_endpoint.c.id == bindparam("of_endpoint_id"), _IS_LIVE)

_ADD = insert(webhook_endpoint)
_COUNT = select(func.count()).where(_IN_PROJECT, _IS_LIVE)
_ONE = select(*ENDPOINT_COLUMNS).where(*_IS_ONE)
_PAGE = (
    select(*ENDPOINT_COLUMNS)
    .where(_IN_PROJECT, _IS_LIVE)
    .order_by(webhook_endpoint.c.created_at.desc(), webhook_endpoint.c.sequence.desc())
    .limit(bindparam("page_rows"))
)
_NEXT_PAGE = _PAGE.where(place(webhook_endpoint) < named_place())
_CHANGE = (
    update(webhook_endpoint)
    .where(
        *_IS_ONE,
        tuple_(webhook_endpoint.c.name, webhook_endpoint.c.url, webhook_endpoint.c.event_types)
        != tuple_(bindparam("new_name"), bindparam("new_url"), bindparam("new_event_types")),
    )
    .values(
        name=bindparam("new_name"),
        url=bindparam("new_url"),
        event_types=bindparam("new_event_types"),
        updated_at=stamp(),
    )
)
_ROTATE = (
    update(webhook_endpoint)
    .where(*_IS_ONE)
    .values(signing_secret=bindparam("new_secret"), updated_at=stamp())
)
_ROTATE_AND_KEEP = _ROTATE.values(
    old_signing_secret=webhook_endpoint.c.signing_secret, old_secret_expires_at=stamp() + OLD_SECRET_KEPT_S
)
_ROTATE_AT_ONCE = _ROTATE.values(old_signing_secret=None, old_secret_expires_at=None)
# The row stays for the sake of cursors, without what others must not know.
_DELETE = (
    update(webhook_endpoint)
    .where(*_IS_ONE)
    .values(
        deleted_at=stamp(),
        url="",
        signing_secret="",
        old_signing_secret=None,
        old_secret_expires_at=None,
    )
)
_DISABLE = (
    update(webhook_endpoint)
    .where(*_IS_ONE, webhook_endpoint.c.disabled_at.is_(None))
    .values(disabled_at=stamp(), updated_at=stamp())
)
_ENABLE = (
    update(webhook_endpoint)
    .where(*_IS_ONE, webhook_endpoint.c.disabled_at.is_not(None))
    .values(disabled_at=None, updated_at=stamp())
)
_DROP_DELIVERIES = (
    update(webhook_delivery)
    .where(
        webhook_delivery.c.endpoint_id == bindparam("of_endpoint_id"),
        webhook_delivery.c.state == DeliveryState.PENDING.value,
    )
    .values(
        state=DeliveryState.FAILED.value,
        token=webhook_delivery.c.token + 1,
        worker_id=None,
        lease_expires_at=None,
    )
)
_LISTENERS = select(webhook_endpoint.c.id, webhook_endpoint.c.event_types).where(
    _IN_PROJECT, _IS_LIVE, webhook_endpoint.c.disabled_at.is_(None)
)
_ENQUEUE = insert_if_absent(
    webhook_delivery,
    {
        **{
            name: bindparam(f"new_{name}")
            for name in ("id", "endpoint_id", "event_id", "event_type", "batch_id", "payload", "created_at")
        },
        "state": DeliveryState.PENDING.value,
        "next_at": now(),
        "retry_until": now() + RETRY_S,
    },
)


class WebhookEndpoints(Verbs):
    """The URLs of each project to which events are sent."""

    @write
    @staticmethod
    def add(connection: Connection, new: WebhookEndpoint, *, most: int, by: Actor | None = None) -> None:
        """Raises RequestError when the project has `most` endpoints."""
        count = connection.execute(_COUNT, {"of_project_id": new.project_id}).scalar_one()
        if count >= most:
            raise RequestError(
                f"The project has {count} webhook endpoints, and {most} is the most. Delete one first."
            )
        row = {**row_of(new), "event_types": json.dumps(new.event_types)}
        connection.execute(_ADD, row)
        audit.record(connection, by, AuditAction.WEBHOOK_CREATED, new.id, project_id=new.project_id)

    @read
    @staticmethod
    def get(connection: Connection, project_id: ProjectId, endpoint_id: str) -> WebhookEndpoint | None:
        """None when the project has no such endpoint."""
        return _one(connection, project_id, endpoint_id)

    @read
    @staticmethod
    def list(
        connection: Connection, project_id: ProjectId, *, after: str | None = None, limit: int = 20
    ) -> Page[WebhookEndpoint]:
        """Newest first.

        Raises:
            NotFoundError: the project never had the endpoint `after`.
        """
        return page_of(
            connection,
            webhook_endpoint,
            _PAGE,
            _NEXT_PAGE,
            parameters={"of_project_id": project_id},
            project_id=project_id,
            after=after,
            limit=limit,
            as_item=as_endpoint,
        )

    @write
    @staticmethod
    def change(
        connection: Connection,
        project_id: ProjectId,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        by: Actor | None = None,
    ) -> WebhookEndpoint | None:
        """The endpoint with the given fields; `updated_at` moves if one differs. None if there is none."""
        found = _one(connection, project_id, endpoint_id)
        if found is None:
            return None
        given = {
            **_key(project_id, endpoint_id),
            "new_name": found.name if name is None else name,
            "new_url": found.url if url is None else url,
            "new_event_types": json.dumps(found.event_types if event_types is None else event_types),
        }
        if connection.execute(_CHANGE, given).rowcount:
            audit.record(connection, by, AuditAction.WEBHOOK_CHANGED, endpoint_id, project_id=project_id)
        return _one(connection, project_id, endpoint_id)

    @write
    @staticmethod
    def rotate(
        connection: Connection,
        project_id: ProjectId,
        endpoint_id: str,
        secret: str,
        *,
        keeps_old: bool,
        by: Actor | None = None,
    ) -> WebhookEndpoint | None:
        """The endpoint with the new secret; None if there is none.

        Args:
            keeps_old: the secret until now signs too, for 24 hours.
        """
        statement = _ROTATE_AND_KEEP if keeps_old else _ROTATE_AT_ONCE
        given = {**_key(project_id, endpoint_id), "new_secret": secret}
        if connection.execute(statement, given).rowcount == 0:
            return None
        audit.record(connection, by, AuditAction.WEBHOOK_ROTATED, endpoint_id, project_id=project_id)
        return _one(connection, project_id, endpoint_id)

    @write
    @staticmethod
    def disable(
        connection: Connection, project_id: ProjectId, endpoint_id: str, *, by: Actor | None = None
    ) -> WebhookEndpoint | None:
        """Makes no more deliveries for the endpoint, and ends those that wait. None if there is none."""
        if connection.execute(_DISABLE, _key(project_id, endpoint_id)).rowcount:
            connection.execute(_DROP_DELIVERIES, {"of_endpoint_id": endpoint_id})
            _record_change(connection, by, project_id, endpoint_id, "disabled")
        return _one(connection, project_id, endpoint_id)

    @write
    @staticmethod
    def enable(
        connection: Connection, project_id: ProjectId, endpoint_id: str, *, by: Actor | None = None
    ) -> WebhookEndpoint | None:
        """Makes deliveries of the events from now on. None if there is no such endpoint."""
        if connection.execute(_ENABLE, _key(project_id, endpoint_id)).rowcount:
            _record_change(connection, by, project_id, endpoint_id, "enabled")
        return _one(connection, project_id, endpoint_id)

    @write
    @staticmethod
    def delete(
        connection: Connection, project_id: ProjectId, endpoint_id: str, *, by: Actor | None = None
    ) -> bool:
        """Forgets URL and secrets, and ends what is still to be delivered. False if there is none."""
        if connection.execute(_DELETE, _key(project_id, endpoint_id)).rowcount == 0:
            return False
        connection.execute(_DROP_DELIVERIES, {"of_endpoint_id": endpoint_id})
        audit.record(connection, by, AuditAction.WEBHOOK_DELETED, endpoint_id, project_id=project_id)
        return True


def _record_change(
    connection: Connection, by: Actor | None, project_id: ProjectId, endpoint_id: str, detail: str
) -> None:
    audit.record(
        connection, by, AuditAction.WEBHOOK_CHANGED, endpoint_id, project_id=project_id, detail=detail
    )


def enqueue(connection: Connection, after: Batch) -> None:
    """Records, in the transaction of a batch's move, what is to be delivered because of it."""
    event_type = event_type_of(after.status)
    if event_type is None:
        return
    listeners = connection.execute(_LISTENERS, {"of_project_id": after.project_id}).all()
    event_id = event_id_of(after.id, event_type)
    created_at = after.newest_stamp
    payload = payload_of(event_id, event_type, created_at=created_at, subject_id=after.id)
    rows = [
        {
            "new_id": delivery_id_of(event_id, endpoint_id),
            "new_endpoint_id": endpoint_id,
            "new_event_id": event_id,
            "new_event_type": event_type,
            "new_batch_id": after.id,
            "new_payload": payload,
            "new_created_at": created_at,
        }
        for endpoint_id, event_types in listeners
        if asks_for(json.loads(event_types), event_type)
    ]
    if rows:
        connection.execute(_ENQUEUE[connection.dialect.name], rows)


def as_endpoint(row: Sequence[Any]) -> WebhookEndpoint:
    """From a row that begins with `ENDPOINT_COLUMNS`."""
    fields = {column.name: value for column, value in zip(ENDPOINT_COLUMNS, row, strict=False)}
    fields["event_types"] = tuple(json.loads(fields["event_types"]))
    return WebhookEndpoint(**fields)


def _one(connection: Connection, project_id: ProjectId, endpoint_id: str) -> WebhookEndpoint | None:
    row = connection.execute(_ONE, _key(project_id, endpoint_id)).one_or_none()
    return None if row is None else as_endpoint(row)


def _key(project_id: ProjectId, endpoint_id: str) -> dict[str, Any]:
    return {"of_project_id": project_id, "of_endpoint_id": endpoint_id}
