"""Idempotency keys: a create that is sent again within a day returns the first object."""

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, bindparam, delete, select

from nightmill.errors import ConflictError
from nightmill.store.clock import now
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import idempotency as table

KEPT_S: Final = 86_400
Operation = Literal["add_file", "create_batch"]

_DELETE_OLD = delete(table).where(table.c.created_at <= now() - KEPT_S)
_FIND = select(table.c.fingerprint, table.c.object_id).where(
    table.c.project_id == bindparam("of_project_id"),
    table.c.operation == bindparam("of_operation"),
    table.c.key == bindparam("of_key"),
)
# Two creates with one key may run at once on Postgres: the second waits here for the first and loses.
_CLAIM = insert_if_absent(
    table,
    {
        "project_id": bindparam("of_project_id"),
        "operation": bindparam("of_operation"),
        "key": bindparam("of_key"),
        "fingerprint": bindparam("new_fingerprint"),
        "object_id": bindparam("new_object_id"),
        "created_at": now(),
    },
)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's Idempotency-Key, valid for a day. `fingerprint` hashes the request it was first used for."""

    key: str
    fingerprint: str


def first_object(
    connection: Connection,
    *,
    project_id: str,
    operation: Operation,
    idempotency: Idempotency | None,
    object_id: str,
) -> str:
    """The id of the object that the key names: `object_id`, unless an earlier create used the key.

    Raises:
        ConflictError: the key was used for another request.
    """
    if idempotency is None:
        return object_id
    connection.execute(_DELETE_OLD)
    row = {"of_project_id": project_id, "of_operation": operation, "of_key": idempotency.key}
    claim = {**row, "new_fingerprint": idempotency.fingerprint, "new_object_id": object_id}
    if connection.execute(_CLAIM[connection.dialect.name], claim).rowcount == 1:
        return object_id
    first = connection.execute(_FIND, row).one()
    if first.fingerprint != idempotency.fingerprint:
        message = "This Idempotency-Key was used for a different request; use a new key."
        raise ConflictError(message, code="idempotency_key_reuse")
    return first.object_id
