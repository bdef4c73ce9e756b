"""The conditions of a `BatchFilter` in SQL, and the pages of batches that match.

A list reads an index in its own order, and that index has the columns that most filters compare, so that the
table is read only for batches that match. Texts are compared in `batch_text`, which is as small as they are.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    false,
    func,
    literal_column,
    or_,
    select,
    text,
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
from nightmill.store.paging import Page, named_place, place, place_of
from nightmill.store.schema import IS_UNFINISHED, batch

_IS_UNFINISHED: Final = text("batch." + IS_UNFINISHED)
_HAS_ENDED: Final = text(f"NOT (batch.{IS_UNFINISHED})")
_UNFINISHED: Final = "unfinished:"
"""Before the id in a cursor: the page ended among the unfinished batches, whatever has become of that one."""
_AFTER_HEX: Final = "g"
_IDS_BEGIN: Final = "batch_"


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


def matching(project_id: ProjectId | None, wanted: BatchFilter) -> list[ColumnElement[bool]]:
    """What a batch has to fulfil.

    Args:
        project_id: None for all projects.
    """
    conditions: list[ColumnElement[bool]] = []
    if project_id is not None:
        conditions.append(batch.c.project_id == project_id)
    if wanted.statuses:
        conditions.append(batch.c.status.in_(sorted(status.value for status in wanted.statuses)))
    if wanted.is_paused is not None:
        can_be_paused = batch.c.status.in_(sorted(status.value for status in STEERABLE))
        is_paused = and_(batch.c.paused_at.is_not(None), can_be_paused)
        conditions.append(is_paused if wanted.is_paused else or_(batch.c.paused_at.is_(None), ~can_be_paused))
    if wanted.older_than_s is not None:
        conditions.append(batch.c.created_at <= now() - wanted.older_than_s)
    if wanted.created_after is not None:
        conditions.append(batch.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(batch.c.created_at < wanted.created_before)
    if wanted.endpoint is not None:
        conditions.append(batch.c.endpoint == wanted.endpoint)
    if wanted.model is not None:
        conditions.append(batch.c.model == wanted.model)
    if wanted.priority is not None:
        conditions.append(batch.c.priority == wanted.priority)
    if wanted.served is not None:
        served = [
            and_(batch.c.endpoint == endpoint, func.coalesce(batch.c.model, "").in_(sorted(models)))
            for endpoint, models in wanted.served.items()
        ]
        conditions.append(or_(false(), *served))
    if wanted.id_prefix is not None:
        conditions += _has_id(wanted.id_prefix)
    if wanted.text is not None:
        conditions.append(_has_text(project_id, wanted.text))
    for key, value in (wanted.metadata or {}).items():
        pair = metadata_pair(key, value)
        conditions.append(_is_in(_texts(project_id).where(_contains(batch_text.c.text, pair))))
        # The name of a file may look like a pair.
        conditions.append(_contains(batch.c.metadata, pair))
    return conditions


def _has_id(prefix: str) -> list[ColumnElement[bool]]:
    """A range of the unique index on ids, whose letters after the prefix are hexadecimal."""
    return [
        batch.c.id >= prefix,
        batch.c.id <= prefix + _AFTER_HEX,
        func.substr(batch.c.id, 1, len(prefix)) == prefix,
    ]


def _has_text(project_id: ProjectId | None, wanted: str) -> ColumnElement[bool]:
    # As JSON in the metadata, but for its quotes, which are not letters to search for.
    found = [
        _contains(func.lower(batch_text.c.text), func.lower(form))
        for form in dict.fromkeys((wanted, metadata_text(wanted)))
    ]
    texts = _is_in(_texts(project_id).where(or_(*found)))
    prefix = wanted if wanted.startswith(_IDS_BEGIN) else _IDS_BEGIN + wanted
    ids = select(batch.c.sequence).where(*_has_id(prefix)).correlate(None)
    return or_(texts, _is_in(ids))


def metadata_text(wanted: str) -> str:
    """The text as the metadata of a batch have it."""
    return metadata_pair(wanted, "")[1 : -len('": ""')]


def _texts(project_id: ProjectId | None) -> Select[Any]:
    texts = select(batch_text.c.batch_sequence)
    return texts if project_id is None else texts.where(batch_text.c.project_id == project_id)


def _is_in(sequences: Select[Any]) -> ColumnElement[bool]:
    # A computed value: the list is read in its own order, and not from a set of batches that must be sorted.
    return (batch.c.sequence + literal_column("0")).in_(sequences)


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
    conditions = matching(project_id, wanted)
    if order is BatchOrder.NEWEST:
        rows = _rows(connection, conditions, project_id, after, limit + 1)
        return _page(rows, limit)
    is_among_unfinished = after is None or after.startswith(_UNFINISHED)
    rows: list[Any] = []
    if is_among_unfinished:
        behind = None if after is None else after.removeprefix(_UNFINISHED)
        rows = _rows(connection, [_IS_UNFINISHED, *conditions], project_id, behind, limit + 1)
    unfinished = len(rows)
    if unfinished <= limit:
        behind = None if is_among_unfinished else after
        rows += _rows(connection, [_HAS_ENDED, *conditions], project_id, behind, limit + 1 - unfinished)
    return _page(rows, limit, unfinished)


def _rows(
    connection: Connection,
    conditions: Sequence[Any],
    project_id: ProjectId | None,
    after: str | None,
    limit: int,
) -> list[Any]:
    query = (
        select(*BATCH_COLUMNS)
        .where(*conditions)
        .order_by(batch.c.created_at.desc(), batch.c.sequence.desc())
        .limit(bindparam("page_rows"))
    )
    given: dict[str, Any] = {"page_rows": limit}
    if after is not None:
        created_at, sequence = place_of(connection, batch, project_id, after)
        given |= {"after_created_at": created_at, "after_sequence": sequence}
        query = query.where(place(batch) < named_place())
    return list(connection.execute(query, given).all())


def _page(rows: Sequence[Any], limit: int, unfinished: int = 0) -> Page[Batch]:
    """
    Args:
        unfinished: so many of the rows come first, and their cursors say so.
    """
    shown = rows[:limit]
    cursor = None if not shown else (_UNFINISHED if len(shown) <= unfinished else "") + shown[-1].id
    return Page(tuple(as_batch(row) for row in shown), has_more=len(rows) > limit, cursor=cursor)
