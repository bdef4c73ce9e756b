"""Random texts that are made once and shared by all processes of a store."""

from sqlalchemy import Connection, bindparam, select

from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import secret
from nightmill.store.verbs import Verbs, write

_ADD = insert_if_absent(secret, {"name": bindparam("new_name"), "value": bindparam("new_value")})
_GET = select(secret.c.value).where(secret.c.name == bindparam("of_name"))


class Secrets(Verbs):
    """Secrets by name. They never change, and leave the store only for the process that uses them."""

    @write
    @staticmethod
    def get_or_add(connection: Connection, name: str, value: str) -> str:
        """The stored secret; `value` is stored if there is none of the name yet."""
        found = connection.execute(_GET, {"of_name": name}).scalar_one_or_none()
        if found is not None:
            return found
        connection.execute(_ADD[connection.dialect.name], {"new_name": name, "new_value": value})
        return connection.execute(_GET, {"of_name": name}).scalar_one()
