"""How many batches are alike: kept counts, and counts of what matches a filter.

Triggers write each change as a row of its own (`batch_index_schema`); `fold` adds them up. A reader adds what
is not yet folded, so a count is always exact.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, case, delete, exists, func, select, text
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.batch import Status
from nightmill.core.batch_facets import BatchGroup, is_of_groups
from nightmill.core.steering import BatchFilter
from nightmill.ids import ProjectId
from nightmill.store.batch_index_schema import (
    FILL,
    GROUP,
    GROUPS_OF_BATCHES,
    batch_count,
    batch_count_change,
    batch_text,
)
from nightmill.store.batch_matches import Matches
from nightmill.store.schema import batch
from nightmill.store.verbs import Verbs, read, write

FOLDED_AT_ONCE: Final = 5_000
"""Bounds how long one transaction takes."""

_KEPT = (
    select(*(batch_count.c[name] for name in GROUP), batch_count.c["count"].label("number"))
    .union_all(
        select(*(batch_count_change.c[name] for name in GROUP), batch_count_change.c.change.label("number"))
    )
    .subquery("kept")
)
_OF_KEPT = tuple(_KEPT.c[name] for name in GROUP)
_SUM = func.sum(_KEPT.c.number)
_GROUPS = select(*_OF_KEPT, _SUM.label("number")).group_by(*_OF_KEPT).having(_SUM != 0)

_SOME_CHANGES = (
    select(batch_count_change.c.sequence)
    .order_by(batch_count_change.c.sequence)
    .limit(FOLDED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_TAKE_CHANGES = (
    delete(batch_count_change)
    .where(batch_count_change.c.sequence.in_(_SOME_CHANGES))
    .returning(*(batch_count_change.c[name] for name in GROUP), batch_count_change.c.change)
)


def _adding(make: Any) -> Any:
    made = make(batch_count)
    total = batch_count.c["count"] + made.excluded["count"]
    return made.on_conflict_do_update(index_elements=list(GROUP), set_={"count": total})


_ADD = {"sqlite": _adding(sqlite.insert), "postgresql": _adding(postgresql.insert)}
_FORGET_EMPTY = delete(batch_count).where(batch_count.c["count"] == 0)
_COUNTED = text(GROUPS_OF_BATCHES)
_IS_TEXT_OF_BATCH = (
    batch_text.c.created_at == batch.c.created_at,
    batch_text.c.batch_sequence == batch.c.sequence,
)
_WITHOUT_TEXT = select(func.count()).select_from(batch).where(~exists().where(*_IS_TEXT_OF_BATCH))
_WITHOUT_BATCH = select(func.count()).select_from(batch_text).where(~exists().where(*_IS_TEXT_OF_BATCH))


class BatchCounts(Verbs):
    """Counts of batches by project, status, pause, endpoint and model."""

    @read
    @staticmethod
    def groups(
        connection: Connection, project_id: ProjectId | None, wanted: BatchFilter
    ) -> Sequence[BatchGroup]:
        """The batches that match what groups do not know of the filter, such as its times.

        Only if there is no such condition are the kept counts enough; otherwise batches are counted, in an
        index.
        """
        if is_of_groups(wanted):
            query = _GROUPS if project_id is None else _GROUPS.where(_KEPT.c.project_id == project_id)
            return as_groups(connection.execute(query))
        bare = BatchFilter(
            metadata=wanted.metadata,
            older_than_s=wanted.older_than_s,
            id_prefix=wanted.id_prefix,
            created_after=wanted.created_after,
            created_before=wanted.created_before,
            text=wanted.text,
            priority=wanted.priority,
        )
        return as_groups(connection.execute(_counting(connection, project_id, bare)))

    @read
    @staticmethod
    def metadata_of_newest(
        connection: Connection, project_id: ProjectId | None, wanted: BatchFilter, *, most: int
    ) -> Sequence[Mapping[str, str]]:
        """The metadata of the newest batches that match; of a batch without any, an empty mapping."""
        query = Matches(connection, project_id, wanted).newest(batch.c.metadata).limit(most)
        return [{} if found is None else json.loads(found) for found in connection.execute(query).scalars()]

    @write
    @staticmethod
    def fold(connection: Connection) -> int:
        """Adds up changes, at most `FOLDED_AT_ONCE`; returns how many there were."""
        changes = connection.execute(_TAKE_CHANGES).all()
        sums: dict[tuple[Any, ...], int] = {}
        for row in changes:
            key = tuple(row[: len(GROUP)])
            sums[key] = sums.get(key, 0) + row.change
        rows = [
            {**dict(zip(GROUP, key, strict=True)), "count": total}
            for key, total in sorted(sums.items())
            if total
        ]
        if rows:
            connection.execute(_ADD[connection.dialect.name], rows)
        if changes:
            connection.execute(_FORGET_EMPTY)
        return len(changes)


def wrong_counts(connection: Connection) -> int:
    """How many groups are counted wrongly; reads every batch."""
    kept = {tuple(row[: len(GROUP)]): int(row.number) for row in connection.execute(_GROUPS)}
    true = {tuple(row[: len(GROUP)]): int(row.number) for row in connection.execute(_COUNTED)}
    return sum(kept.get(key) != true.get(key) for key in kept.keys() | true.keys())


def wrong_texts(connection: Connection) -> int:
    """How many batches have no text, and how many texts no batch."""
    return sum(connection.execute(query).scalar_one() for query in (_WITHOUT_TEXT, _WITHOUT_BATCH))


def recount(connection: Connection) -> None:
    """Counts and indexes every batch again. No other process may write meanwhile."""
    for table in ("batch_count", "batch_count_change", "batch_text"):
        connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - names of tables
    for statement in FILL:
        connection.execute(text(statement))


def as_groups(rows: Any) -> list[BatchGroup]:
    return [
        BatchGroup(
            ProjectId(row.project_id),
            Status(row.status),
            bool(row.is_paused),
            row.endpoint,
            row.model,
            int(row.number),
        )
        for row in rows
    ]


def _counting(
    connection: Connection, project_id: ProjectId | None, wanted: BatchFilter
) -> Select[*tuple[Any, ...]]:
    is_paused = batch.c.paused_at.is_not(None) & batch.c.status.in_(("validating", "in_progress"))
    columns = (
        batch.c.project_id,
        batch.c.status,
        case((is_paused, 1), else_=0).label("is_paused"),
        batch.c.endpoint,
        func.coalesce(batch.c.model, "").label("model"),
    )
    query = Matches(connection, project_id, wanted).select(*columns, func.count().label("number"))
    return query.group_by(*(column.name for column in columns))
