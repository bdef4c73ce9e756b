"""Grants: who may have how many attempts in flight to an upstream, until when.

All claims for one upstream go through its row, one after another; the decision itself is `window.decide`.
"""

from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Insert, bindparam, delete, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.concurrency import Grant, OtherGrant, SlotRequest, decide
from nightmill.ids import WorkerId
from nightmill.store.clock import now
from nightmill.store.schema import upstream, upstream_grant

_NAME: Final[BindParameter[Any]] = bindparam("of_upstream")
_LOCK = select(upstream.c.name, now().label("at")).where(upstream.c.name == _NAME).with_for_update()
_ADD: dict[str, Insert] = {
    "sqlite": sqlite.insert(upstream).values(name=_NAME).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(upstream).values(name=_NAME).on_conflict_do_nothing(),
}
# The claimant's own goes too: the answer takes its place.
_OVER = delete(upstream_grant).where(
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
_RELEASE_OF = delete(upstream_grant).where(upstream_grant.c.worker_id == bindparam("holder"))
_RELEASE_ALL = delete(upstream_grant)


def grant(connection: Connection, request: SlotRequest, ttl_s: float) -> Grant:
    of: dict[str, Any] = {"of_upstream": request.upstream}
    locked = connection.execute(_LOCK, of).first()
    if locked is None:
        connection.execute(_ADD[connection.dialect.name], of)
        locked = connection.execute(_LOCK, of).one()
    by: dict[str, Any] = {**of, "claimant": request.worker_id}
    connection.execute(_OVER, by)
    others = [
        OtherGrant(WorkerId(row.worker_id), row.slots, row.wanted) for row in connection.execute(_OTHERS, of)
    ]
    made = decide(request, others, turn=int(locked.at / ttl_s))
    if made.slots or request.wanted:
        given = {**by, "new_slots": made.slots, "new_wanted": request.wanted, "ttl_s": ttl_s}
        connection.execute(_GRANT, given)
    return made


def release_grants_of(connection: Connection, worker_id: WorkerId) -> None:
    connection.execute(_RELEASE_OF, {"holder": worker_id})


def release_all_grants(connection: Connection) -> None:
    connection.execute(_RELEASE_ALL)
