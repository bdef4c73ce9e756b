"""The conditions of a `BatchFilter` in SQL, and the pages of batches that match.

A list reads an index in its own order, and that index has the columns that most filters compare, so that the
table is read only for batches that match. Texts are compared in `batch_text`, which is as small as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    TextClause,
    and_,
    bindparam,
    exists,
    false,
    func,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean, TypeEngine

from nightmill.core.batch import Batch
from nightmill.core.steering import STEERABLE, BatchFilter, BatchOrder
from nightmill.ids import ProjectId
from nightmill.store.batch_index_schema import batch_text
from nightmill.store.batches import BATCH_COLUMNS, as_batch, metadata_pair
from nightmill.store.clock import now
from nightmill.store.paging import Page, named_place, place_of
from nightmill.store.schema import IS_UNFINISHED, batch

_IS_UNFINISHED: Final = text("batch." + IS_UNFINISHED)
_HAS_ENDED: Final = text(f"NOT (batch.{IS_UNFINISHED})")
_UNFINISHED: Final = "unfinished:"
"""Before the id in a cursor: the page ended among the unfinished batches, whatever has become of that one."""
_AFTER_HEX: Final = "g"
_IDS_BEGIN: Final = "batch_"
_LIKE_AN_ID: Final = re.compile(r"batch_[0-9a-z]{1,32}|[0-9A-Fa-f]{4,32}", re.IGNORECASE)


class _contains(FunctionElement[bool]):  # noqa: N801 - named as an SQL function
    """Whether the first text contains the second."""

    inherit_cache = True
    type: TypeEngine[bool] = Boolean()


@compiles(_contains, "sqlite")
def _contains_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"(instr({compiler.process(element.clauses, **options)}) > 0)"


@compiles(_contains, "postgresql")
def _contains_in_postgres(element: Any, compiler: Any, **options: Any) -> str:
    return f"(strpos({compiler.process(element.clauses, **options)}) > 0)"


class Matches:
    """The batches that match a filter, as a query.

    Args:
        project_id: None for all projects.
        unfinished: only those that have not ended, of which there are few.
    """

    def __init__(
        self,
        connection: Connection,
        project_id: ProjectId | None,
        wanted: BatchFilter,
        *,
        unfinished: bool = False,
    ) -> None:
        wanted = _with_id(connection, wanted)
        texts = _texts(wanted)
        conditions: list[ColumnElement[bool] | TextClause] = [*_conditions(wanted)]
        self._source: FromClause = batch
        self.created_at: ColumnElement[int] = batch.c.created_at
        self.sequence: ColumnElement[int] = batch.c.sequence
        project: ColumnElement[str] = batch.c.project_id
        if unfinished:
            conditions.append(_IS_UNFINISHED)
        if texts and unfinished:
            of_batch = (
                self.created_at == batch_text.c.created_at,
                self.sequence == batch_text.c.batch_sequence,
            )
            conditions.append(exists().where(*of_batch, *texts))
        elif texts:
            # From the texts, in the order of a list, to the batches; never for each batch to its text.
            self.created_at, self.sequence = batch_text.c.created_at, batch_text.c.batch_sequence
            self._source = batch_text.join(batch, batch.c.sequence == self.sequence)
            project = batch_text.c.project_id
            conditions += texts
        elif wanted.id_prefix is not None:
            # Computed values: few batches are sorted, where an index with an order would compare all.
            self.created_at, project = self.created_at + 0, project.concat("")
        if wanted.id_prefix is not None:
            conditions += _has_id(wanted.id_prefix)
        if project_id is not None:
            conditions.append(project == project_id)
        for key, value in (wanted.metadata or {}).items():
            # The text is in lower case, and the name of a file may look like a pair.
            conditions.append(_contains(batch.c.metadata, metadata_pair(key, value)))
        self._conditions = (*conditions, *_of_time(wanted, self.created_at))

    def select(self, *columns: Any) -> Select[*tuple[Any, ...]]:
        """A query of all that match."""
        return select(*columns).select_from(self._source).where(*self._conditions)

    def newest(self, *columns: Any) -> Select[*tuple[Any, ...]]:
        """The query in the order of lists."""
        return self.select(*columns).order_by(self.created_at.desc(), self.sequence.desc())


def _conditions(wanted: BatchFilter) -> list[ColumnElement[bool]]:
    """What the columns of a batch have to fulfil, but for its id and its time."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.statuses:
        conditions.append(batch.c.status.in_(sorted(status.value for status in wanted.statuses)))
    if wanted.is_paused is not None:
        can_be_paused = batch.c.status.in_(sorted(status.value for status in STEERABLE))
        is_paused = and_(batch.c.paused_at.is_not(None), can_be_paused)
        conditions.append(is_paused if wanted.is_paused else or_(batch.c.paused_at.is_(None), ~can_be_paused))
    if wanted.endpoint is not None:
        conditions.append(batch.c.endpoint == wanted.endpoint)
    if wanted.model is not None:
        conditions.append(batch.c.model == wanted.model)
    if wanted.priority is not None:
        conditions.append(batch.c.priority == wanted.priority)
    if wanted.served is not None:
        served = [
            and_(batch.c.endpoint == endpoint, _has_model(models))
            for endpoint, models in wanted.served.items()
        ]
        conditions.append(or_(false(), *served))
    return conditions


def _has_model(models: frozenset[str]) -> ColumnElement[bool]:
    named = batch.c.model.in_(sorted(models))
    return or_(named, batch.c.model.is_(None)) if "" in models else named


def _of_time(wanted: BatchFilter, created_at: ColumnElement[int]) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.older_than_s is not None:
        conditions.append(created_at <= now() - wanted.older_than_s)
    if wanted.created_after is not None:
        conditions.append(created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(created_at < wanted.created_before)
    return conditions


def _texts(wanted: BatchFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.text is not None:
        # In the metadata it is escaped as in JSON.
        forms = dict.fromkeys((wanted.text, metadata_pair(wanted.text, "")[1 : -len('": ""')]))
        conditions.append(or_(*(_contains(batch_text.c.text, func.lower(form)) for form in forms)))
    for key, value in (wanted.metadata or {}).items():
        pair = metadata_pair(key, value)
        conditions.append(_contains(batch_text.c.text, func.lower(pair)))
    return conditions


def _has_id(prefix: str) -> list[ColumnElement[bool]]:
    """A range of the unique index on ids, whose letters after the prefix are hexadecimal."""
    return [
        batch.c.id >= prefix,
        batch.c.id <= prefix + _AFTER_HEX,
        func.substr(batch.c.id, 1, len(prefix)) == prefix,
    ]


def _with_id(connection: Connection, wanted: BatchFilter) -> BatchFilter:
    """The filter with the beginning of an id in place of a text, if it is the beginning of one."""
    if wanted.text is None or wanted.id_prefix is not None or not _LIKE_AN_ID.fullmatch(wanted.text):
        return wanted
    prefix = _IDS_BEGIN + wanted.text.lower().removeprefix(_IDS_BEGIN)
    found = connection.execute(select(batch.c.id).where(*_has_id(prefix)).limit(1)).first()
    return wanted if found is None else replace(wanted, text=None, id_prefix=prefix)


def page_of_matching(
    connection: Connection,
    project_id: ProjectId | None,
    wanted: BatchFilter,
    *,
    order: BatchOrder,
    after: str | None,
    limit: int,
) -> Page[Batch]:
    """A page of the batches that match, with the cursor of its last batch.

    Raises:
        NotFoundError: there never was the batch that `after` names.
    """
    matches = Matches(connection, project_id, wanted)
    if order is BatchOrder.NEWEST:
        rows = _rows(connection, matches, (), project_id, after, limit + 1)
        return _page(rows, limit)
    is_among_unfinished = after is None or after.startswith(_UNFINISHED)
    rows: list[Any] = []
    if is_among_unfinished:
        behind = None if after is None else after.removeprefix(_UNFINISHED)
        unfinished_matches = Matches(connection, project_id, wanted, unfinished=True)
        rows = _rows(connection, unfinished_matches, (), project_id, behind, limit + 1)
    unfinished = len(rows)
    if unfinished <= limit:
        behind = None if is_among_unfinished else after
        rows += _rows(connection, matches, [_HAS_ENDED], project_id, behind, limit + 1 - unfinished)
    return _page(rows, limit, unfinished)


def _rows(
    connection: Connection,
    matches: Matches,
    conditions: Sequence[Any],
    project_id: ProjectId | None,
    after: str | None,
    limit: int,
) -> list[Any]:
    query = matches.newest(*BATCH_COLUMNS).where(*conditions).limit(bindparam("page_rows"))
    given: dict[str, Any] = {"page_rows": limit}
    if after is not None:
        created_at, sequence = place_of(connection, batch, project_id, after)
        given |= {"after_created_at": created_at, "after_sequence": sequence}
        query = query.where(tuple_(matches.created_at, matches.sequence) < named_place())
    return list(connection.execute(query, given).all())


def _page(rows: Sequence[Any], limit: int, unfinished: int = 0) -> Page[Batch]:
    """
    Args:
        unfinished: so many of the rows come first, and their cursors say so.
    """
    shown = rows[:limit]
    cursor = None if not shown else (_UNFINISHED if len(shown) <= unfinished else "") + shown[-1].id
    return Page(tuple(as_batch(row) for row in shown), has_more=len(rows) > limit, cursor=cursor)
