"""Open batches with waiting segments: the candidates from which a worker chooses what to lease.

The choice belongs to `core.schedule`, the lease to `segments`. Every query is bounded and has an index for
its order, so that its cost grows neither with the open batches nor with the waiting segments.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    ScalarSelect,
    bindparam,
    literal,
    select,
    text,
)

from nightmill.core.schedule import NEAR_DEADLINE_S, Candidates, OpenBatch
from nightmill.ids import BatchId, ProjectId, WorkerId
from nightmill.store.clock import stamp
from nightmill.store.leasable import held_by_no_other, may_be_sent
from nightmill.store.schema import IS_SENDABLE, WAITING, batch, segment
from nightmill.store.verbs import Verbs, read

NO_WORKER = WorkerId("")
OPEN_BATCH_COLUMNS = (
    batch.c.id,
    batch.c.project_id,
    batch.c.sequence,
    batch.c.expires_at,
    batch.c.input_bytes,
    batch.c.priority,
)
_IS_CANDIDATE = (
    text("batch." + IS_SENDABLE),
    batch.c.expires_at > stamp(),  # whole seconds, or Postgres does not use the index
    batch.c.id.not_in(bindparam("passed_over", expanding=True)),
    select(segment.c.number)
    .where(
        segment.c.batch_id == batch.c.id,
        segment.c.state == WAITING,
        may_be_sent(batch.c.canary_segments),
    )
    .limit(1)
    .scalar_subquery()
    .is_not(None),
    held_by_no_other(),
)
_NEAR = (
    select(*OPEN_BATCH_COLUMNS)
    .where(batch.c.expires_at <= stamp() + NEAR_DEADLINE_S, *_IS_CANDIDATE)
    .order_by(batch.c.expires_at)
    .limit(bindparam("near_limit"))
)


def _some_values(of: ColumnElement[Any], *, name: str) -> CTE:
    """Some values that batches in progress have in a column, as `value`, in order.

    One step of the recursion is one probe of the index by that column and `sequence`, however many batches
    have a value. The parameters are `after_NAME`, the value before the first, and `NAME_limit`.
    """

    def next_after(value: ColumnElement[Any]) -> ScalarSelect[Any]:
        is_after = (text("batch." + IS_SENDABLE), of > value)
        return select(of).where(*is_after).order_by(of, batch.c.sequence).limit(1).scalar_subquery()

    first = select(literal(1).label("place"), next_after(bindparam(f"after_{name}")).label("value")).cte(
        name, recursive=True
    )
    return first.union_all(
        select(first.c.place + 1, next_after(first.c.value)).where(
            first.c.value.is_not(None), first.c.place < bindparam(f"{name}_limit")
        )
    )


_PROJECT = _some_values(batch.c.project_id, name="project")
# A range and `project_id` in the order: no index but the intended one has this order. With an equality,
# Postgres may read the batches of all projects by age until it finds one of the project.
_IS_OF_PROJECT = (batch.c.project_id >= _PROJECT.c.value, batch.c.project_id <= _PROJECT.c.value)
_OF_PROJECT = (
    select(batch.c.sequence).where(*_IS_OF_PROJECT, *_IS_CANDIDATE).order_by(batch.c.project_id).limit(1)
)
_PROJECTS = select(
    _PROJECT.c.value.label("id"),
    _OF_PROJECT.order_by(batch.c.priority.desc(), batch.c.sequence).scalar_subquery().label("highest"),
    _OF_PROJECT.order_by(batch.c.sequence).scalar_subquery().label("oldest"),
    _OF_PROJECT.order_by(batch.c.input_bytes, batch.c.sequence).scalar_subquery().label("smallest"),
).where(_PROJECT.c.value.is_not(None))
_MODEL = _some_values(batch.c.model, name="model")
_OF_ANY_MODEL = select(batch.c.sequence).where(*_IS_CANDIDATE)
_OF_MODEL = _OF_ANY_MODEL.where(batch.c.model >= _MODEL.c.value, batch.c.model <= _MODEL.c.value)
_MODELS = select(
    _MODEL.c.value.label("name"),
    _OF_MODEL.order_by(batch.c.model, batch.c.sequence).limit(1).scalar_subquery().label("oldest"),
).where(_MODEL.c.value.is_not(None))
# Batches whose lines name several models have no model.
_OF_SEVERAL_MODELS = (
    _OF_ANY_MODEL.where(batch.c.model.is_(None)).order_by(batch.c.model, batch.c.sequence).limit(1)
)
_BY_SEQUENCE = select(*OPEN_BATCH_COLUMNS).where(batch.c.sequence.in_(bindparam("sequences", expanding=True)))
_PRIORITIES = select(batch.c.id, batch.c.priority).where(
    batch.c.id.in_(bindparam("passed_over", expanding=True))
)


class OpenBatches(Verbs):
    """Batches in progress, as the order between batches sees them."""

    @read
    @staticmethod
    def candidates(
        connection: Connection,
        *,
        after: ProjectId,
        most: int,
        passed_over: Collection[BatchId],
        after_model: str | None = None,
        worker_id: WorkerId = NO_WORKER,
    ) -> Candidates:
        """Batches with waiting segments before their deadline: those with the nearest deadlines, and of some
        projects the oldest of the highest priority, the oldest and the smallest.

        Args:
            after: the projects that follow this one in the order of their ids; all if empty.
            most: batches with near deadlines, and projects.
            passed_over: batches that are no candidates, some dozens at most; their priorities are read.
            after_model: the oldest batch of each of the `most` models that follow this one is a candidate,
                and the oldest of those with several models. None for no such candidates.
            worker_id: a batch with a concurrency of its own is no candidate if another worker has leases of
                it.
        """
        passed = {"passed_over": list(passed_over), "by_worker_id": worker_id}
        near = [OpenBatch(*row) for row in connection.execute(_NEAR, {"near_limit": most, **passed})]
        given = {"after_project": after, "project_limit": most, **passed}
        projects = connection.execute(_PROJECTS, given).all()
        models: list[tuple[str | None, int | None]] = []
        if after_model is not None:
            rows = connection.execute(_MODELS, {"after_model": after_model, "model_limit": most, **passed})
            models = [(row.name, row.oldest) for row in rows]
            models.append((None, connection.execute(_OF_SEVERAL_MODELS, passed).scalar()))
        sequences = {row[place] for row in projects for place in (1, 2, 3) if row[place] is not None}
        sequences.update(sequence for _, sequence in models if sequence is not None)
        found: dict[int, OpenBatch] = {}
        if sequences:
            rows = connection.execute(_BY_SEQUENCE, {"sequences": sorted(sequences)})
            found = {row.sequence: OpenBatch(*row) for row in rows}
        by_project = [
            [found[sequence] for sequence in dict.fromkeys(row[1:]) if sequence in found] for row in projects
        ]
        is_last = len(projects) < most
        next_after = ProjectId("") if is_last else ProjectId(projects[-1].id)
        priorities: dict[BatchId, int] = {}
        if passed_over:
            priorities = {
                BatchId(row.id): row.priority
                for row in connection.execute(_PRIORITIES, {"passed_over": list(passed_over)})
            }
        by_model = [(name, found[sequence]) for name, sequence in models if sequence in found]
        next_model = "" if len(models) <= most else str(models[-2][0])
        return Candidates(near, by_project, next_after, priorities, by_model, next_model)
