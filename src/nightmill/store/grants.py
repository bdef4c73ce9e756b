"""Grants: which worker may have how many attempts in flight to an upstream, until when.

All claims for one upstream lock its row, so they are decided one after another; the decision itself is
`window.decide`.
"""

from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, or_, select

from nightmill.core.concurrency import Grant, OtherGrant, SlotRequest, decide
from nightmill.ids import WorkerId
from nightmill.store.clock import now
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import upstream, upstream_grant
from nightmill.store.verbs import Verbs, write

_NAME: Final[BindParameter[Any]] = bindparam("of_upstream")
_LOCK = select(upstream.c.name, now().label("at")).where(upstream.c.name == _NAME).with_for_update()
_ADD = insert_if_absent(upstream, {"name": _NAME})
# The claimant's own grant goes too: the new one takes its place.
_DELETE_EXPIRED_AND_OWN = delete(upstream_grant).where(
    upstream_grant.c.upstream == _NAME,
    or_(upstream_grant.c.expires_at <= now(), upstream_grant.c.worker_id == bindparam("claimant")),
)
_OTHERS = (
    select(upstream_grant.c.worker_id, upstream_grant.c.slots, upstream_grant.c.wanted)
    .where(upstream_grant.c.upstream == _NAME)
    .order_by(upstream_grant.c.worker_id)
)
_GRANT = insert(upstream_grant).values(
    upstream=_NAME,
    worker_id=bindparam("claimant"),
    slots=bindparam("new_slots"),
    wanted=bindparam("new_wanted"),
    expires_at=now() + bindparam("ttl_s"),
)
_RELEASE_OF_WORKER = delete(upstream_grant).where(upstream_grant.c.worker_id == bindparam("holder"))
_RELEASE_ALL = delete(upstream_grant)


class Grants(Verbs):
    """Each worker's share of an upstream's concurrency limit."""

    @write
    @staticmethod
    def request(connection: Connection, request: SlotRequest, *, ttl_s: float) -> Grant:
        """How many attempts the worker may have in flight to the upstream for the next `ttl_s`.

        The unexpired grants of an upstream never add up to more than its limit (see `window`).
        """
        of: dict[str, Any] = {"of_upstream": request.upstream}
        locked = connection.execute(_LOCK, of).first()
        if locked is None:
            connection.execute(_ADD[connection.dialect.name], of)
            locked = connection.execute(_LOCK, of).one()
        by: dict[str, Any] = {**of, "claimant": request.worker_id}
        connection.execute(_DELETE_EXPIRED_AND_OWN, by)
        others = [
            OtherGrant(WorkerId(row.worker_id), row.slots, row.wanted)
            for row in connection.execute(_OTHERS, of)
        ]
        made = decide(request, others, turn=int(locked.at / ttl_s))
        if made.slots or request.wanted:
            given = {**by, "new_slots": made.slots, "new_wanted": request.wanted, "ttl_s": ttl_s}
            connection.execute(_GRANT, given)
        return made


def release_grants_of(connection: Connection, worker_id: WorkerId) -> None:
    connection.execute(_RELEASE_OF_WORKER, {"holder": worker_id})


def release_all_grants(connection: Connection) -> None:
    connection.execute(_RELEASE_ALL)
