"""Grants: which worker may have how many attempts in flight to an upstream, until when.

All requests for one upstream lock its row, so they are decided one after another; the decision itself is
`core.concurrency.decide`. The state of an adaptive limit is in the same row, and
`core.load_share.advance_shared` changes it in the same transaction.
"""

from dataclasses import replace
from typing import Any, Final

import msgspec
from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, or_, select, update

from nightmill.core.concurrency import Grant, OtherGrant, SlotRequest, decide
from nightmill.core.limit_state import Bounds, LimitState, Observed
from nightmill.core.load_share import advance_shared
from nightmill.ids import WorkerId
from nightmill.store.clock import now
from nightmill.store.rows import insert_if_absent
from nightmill.store.upstream_schema import upstream, upstream_grant
from nightmill.store.verbs import Verbs, write

_NAME: Final[BindParameter[Any]] = bindparam("of_upstream")
_LOCK = select(upstream.c.name, now().label("at")).where(upstream.c.name == _NAME).with_for_update()
_LOCK_WITH_STATE = _LOCK.add_columns(upstream.c.limit_state)
_SAVE_STATE = update(upstream).where(upstream.c.name == _NAME).values(limit_state=bindparam("new_state"))
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

        The unexpired grants of an upstream never add up to more than its limit (see `core.concurrency`).
        """
        of: dict[str, Any] = {"of_upstream": request.upstream}
        lock = _LOCK if request.bounds is None else _LOCK_WITH_STATE
        locked = connection.execute(lock, of).first()
        if locked is None:
            connection.execute(_ADD[connection.dialect.name], of)
            locked = connection.execute(lock, of).one()
        by: dict[str, Any] = {**of, "claimant": request.worker_id}
        connection.execute(_DELETE_EXPIRED_AND_OWN, by)
        others = [
            OtherGrant(WorkerId(row.worker_id), row.slots, row.wanted)
            for row in connection.execute(_OTHERS, of)
        ]
        state = None
        if request.bounds is not None:
            before = _state_of(locked.limit_state)
            state = _advanced(before, request, request.bounds, others, now=locked.at)
            if state != before:
                connection.execute(_SAVE_STATE, {**of, "new_state": msgspec.json.encode(state).decode()})
            request = replace(request, concurrency_limit=state.limit)
        made = decide(request, others, turn=int(locked.at / ttl_s))
        if state is not None:
            made = replace(made, limit=state.limit, rule=state.rule, advice=state.advice)
        if made.slots or request.wanted:
            given = {**by, "new_slots": made.slots, "new_wanted": request.wanted, "ttl_s": ttl_s}
            connection.execute(_GRANT, given)
        return made


def _state_of(text: str | None) -> LimitState | None:
    """None if there is no state, or none that this version can read: then the limit starts anew."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=LimitState)
    except msgspec.DecodeError:
        return None


def _advanced(
    state: LimitState | None,
    request: SlotRequest,
    bounds: Bounds,
    others: list[OtherGrant],
    *,
    now: float,
) -> LimitState:
    in_flight = request.in_flight + sum(min(other.slots, other.wanted) for other in others)
    return advance_shared(
        state,
        request.observed or Observed(),
        share=request.load_share,
        in_flight=in_flight,
        bounds=bounds,
        now=now,
    )


def release_grants_of(connection: Connection, worker_id: WorkerId) -> None:
    connection.execute(_RELEASE_OF_WORKER, {"holder": worker_id})


def release_all_grants(connection: Connection) -> None:
    connection.execute(_RELEASE_ALL)
