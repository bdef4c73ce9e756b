"""Conditions on batches and segments that a worker may lease, for the queries that look for them.

A batch with a limit of its own is leased by one worker at a time (see `roles/batch_cap.py`). Of a batch whose
canary is not decided, only the first segments are leased (see `store/canaries.py`).
"""

from sqlalchemy import ColumnElement, bindparam, func, literal, or_, select

from nightmill.store.schema import LEASED, batch, segment


def held_by_no_other() -> ColumnElement[bool]:
    """That no other worker than the parameter `by_worker_id` has a lease of the batch, if the batch has a
    concurrency of its own: the worker that has one of its segments keeps the limit for all of them."""
    other = select(literal(1)).where(
        segment.c.batch_id == batch.c.id,
        segment.c.state == LEASED,
        segment.c.worker_id != bindparam("by_worker_id"),
    )
    return or_(batch.c.concurrency.is_(None), other.limit(1).scalar_subquery().is_(None))


def may_be_sent(canary_segments: ColumnElement[int]) -> ColumnElement[bool]:
    """That a segment is part of the canary, or the batch has no canary that is not decided."""
    return segment.c.number < func.coalesce(canary_segments, 1 << 62)
