"""API keys by the digest of their secret, and secrets that the processes of a store share."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, exists, insert, literal, select, update

from nightmill.core.api_key import ApiKey, Scope
from nightmill.core.audit import Actor, AuditAction
from nightmill.store import audit
from nightmill.store.clock import stamp
from nightmill.store.rows import columns_of, insert_if_absent, row_of
from nightmill.store.schema import api_key, secret
from nightmill.store.verbs import Verbs, read, write

_COLUMNS = select(*columns_of(ApiKey, api_key))
_ADD = insert(api_key)
_FIND = _COLUMNS.where(api_key.c.digest == bindparam("digest"), api_key.c.revoked_at.is_(None))
_LIST = _COLUMNS.order_by(api_key.c.sequence)
_REVOKE = (
    update(api_key)
    .where(api_key.c.id == bindparam("key_id"), api_key.c.revoked_at.is_(None))
    .values(revoked_at=stamp())
    .returning(api_key.c.project_id)
)
_ANY = select(literal(1)).where(exists().select_from(api_key))
_ADD_SECRET = insert_if_absent(secret, {"name": bindparam("new_name"), "value": bindparam("new_value")})
_GET_SECRET = select(secret.c.value).where(secret.c.name == bindparam("of_name"))


class ApiKeys(Verbs):
    """API keys, revoked ones included."""

    @write
    @staticmethod
    def add(connection: Connection, key: ApiKey, *, by: Actor | None = None) -> None:
        connection.execute(_ADD, row_of(key))
        audit.record(
            connection,
            by,
            AuditAction.KEY_CREATED,
            key.id,
            project_id=key.project_id,
            detail=f"scope {key.scope}",
        )

    @read
    @staticmethod
    def get(connection: Connection, digest: str) -> ApiKey | None:
        """The key with that digest, unless revoked."""
        row = connection.execute(_FIND, {"digest": digest}).one_or_none()
        return None if row is None else _as_key(row)

    @read
    @staticmethod
    def list(connection: Connection) -> Sequence[ApiKey]:
        """All keys, in the order they were made."""
        return [_as_key(row) for row in connection.execute(_LIST)]

    @write
    @staticmethod
    def revoke(connection: Connection, key_id: str, *, by: Actor | None = None) -> bool:
        """False when there is no such key, or it was revoked before."""
        project_id = connection.execute(_REVOKE, {"key_id": key_id}).scalar_one_or_none()
        if project_id is None:
            return False
        audit.record(connection, by, AuditAction.KEY_REVOKED, key_id, project_id=project_id)
        return True

    @read
    @staticmethod
    def any_exist(connection: Connection) -> bool:
        """Whether a key was ever made. Revoked keys count: revoking the last key must not open the server."""
        return connection.execute(_ANY).one_or_none() is not None


def _as_key(row: Sequence[Any]) -> ApiKey:
    *columns, scope = row
    return ApiKey(*columns, scope=Scope(scope))


class Secrets(Verbs):
    """Random texts by name. They never change, and leave the store only for the process that uses them."""

    @write
    @staticmethod
    def get_or_add(connection: Connection, name: str, value: str) -> str:
        """The stored secret; `value` is stored if there is none of the name yet."""
        found = connection.execute(_GET_SECRET, {"of_name": name}).scalar_one_or_none()
        if found is not None:
            return found
        connection.execute(_ADD_SECRET[connection.dialect.name], {"new_name": name, "new_value": value})
        return connection.execute(_GET_SECRET, {"of_name": name}).scalar_one()
