"""Copies the rows of a SQLite store into an empty Postgres, in one transaction.

Afterwards the new store holds every row of the old one, or none; the counts are compared before the commit.
The caller must see to it that nothing else writes to either store. Bytes are copied elsewhere.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from nightmill.core.batch import TERMINAL, Batch, Tally
from nightmill.core.file import UploadStatus
from nightmill.core.segment import PinnedPart
from nightmill.errors import SetupError
from nightmill.ids import BatchId
from nightmill.store.batches import BATCH_COLUMNS, as_batch
from nightmill.store.database_url import parse_url, sqlite_path
from nightmill.store.migrate import metadata
from nightmill.store.postgres import PostgresDatabase
from nightmill.store.rows import ROWS_AT_ONCE
from nightmill.store.schema import audit, batch, file, piece, segment, upload, upload_part
from nightmill.store.sqlite import sqlite_engine, sqlite_failure
from nightmill.store.tallies import dump_parts, tally_values

T = TypeVar("T")

_TIMEOUT_S: Final = 120.0
# Grants, reports, counts and their samples are of processes that have ended, and the record of the new schema
# stays. The triggers of the new store count and index the batches that arrive.
_NOT_MOVED: Final = frozenset(
    {
        "slice",
        "upstream",
        "upstream_grant",
        "upstream_report",
        "upstream_sample",
        "batch_report",
        "line_report",
        "process_counts",
        "batch_count",
        "batch_count_change",
        "batch_text",
        "schema_compatibility",
    }
)
_ENDED: Final = tuple(status.value for status in TERMINAL)


@dataclass(frozen=True, slots=True)
class MovedSegment:
    """The new row of a segment whose answers were written anew."""

    token: int
    pinned: tuple[PinnedPart, ...]
    tally: Tally


Moved = Mapping[tuple[str, int], MovedSegment]


def unfinished_batches(source_url: str) -> Sequence[Batch]:
    query = select(*BATCH_COLUMNS).where(batch.c.status.not_in(_ENDED)).order_by(batch.c.sequence)
    return _reading(source_url, lambda connection: [as_batch(row) for row in connection.execute(query)])


def needed_blobs(source_url: str) -> Sequence[str]:
    """Keys of the blobs that live files, pending uploads, unfinished batches and reports need."""
    is_open = batch.c.status.not_in(_ENDED)
    queries = (
        select(file.c.blob_key).where(file.c.deleted_at.is_(None)),
        select(upload_part.c.blob_key)
        .join(upload, upload.c.id == upload_part.c.upload_id)
        .where(upload.c.status == UploadStatus.PENDING.value),
        select(piece.c.blob_key).where(piece.c.of_blob_key.is_not(None)),
        select(batch.c.input_blob_key).where(is_open),
        select(batch.c.index_blob_key).where(is_open),
        select(batch.c.report_blob_key).where(batch.c.report_blob_key.is_not(None)),
    )

    def read(connection: Connection) -> Sequence[str]:
        keys = {key for query in queries for key in connection.execute(query).scalars() if key}
        return sorted(keys)

    return _reading(source_url, read)


async def copy_rows(source_url: str, target_url: str, moved: Moved) -> dict[str, int]:
    """How many rows of each table were copied.

    Raises:
        SetupError: the new store is not empty.
    """
    database = PostgresDatabase(parse_url(target_url), busy_timeout_s=_TIMEOUT_S)
    try:
        return await database.write(_copy_from, source_url, moved)
    finally:
        await database.close()


def _copy_from(target: Connection, source_url: str, moved: Moved) -> dict[str, int]:
    tables = [table for table in metadata.sorted_tables if table.name not in _NOT_MOVED]
    own_audit = _count(target, audit)  # entries of its own migration; the copied entries follow them
    if taken := [table.name for table in tables if table is not audit and _count(target, table)]:
        raise SetupError(f"the store to move to is not empty: it has rows of {', '.join(taken)}")

    def copy(source: Connection) -> dict[str, int]:
        tallies = _batch_tallies(moved)
        for table in tables:
            _copy_table(source, target, table, moved, tallies)
        counts = {table.name: _count(source, table) for table in tables}
        for table in tables:
            found = _count(target, table) - (own_audit if table is audit else 0)
            if found != counts[table.name]:
                message = (
                    f"{found} rows of {table.name} arrived, {counts[table.name]} were sent; nothing is moved"
                )
                raise SetupError(message)
        return counts

    return _reading(source_url, copy)


def _copy_table(
    source: Connection,
    target: Connection,
    table: Table,
    moved: Moved,
    tallies: Mapping[BatchId, Mapping[str, int]],
) -> None:
    result = source.execute(select(table)).mappings()
    while rows := result.fetchmany(ROWS_AT_ONCE):
        target.execute(insert(table), [_changed(table, dict(row), moved, tallies) for row in rows])
    if "sequence" in table.c:
        last = target.execute(select(func.coalesce(func.max(table.c.sequence), 0))).scalar_one()
        given = {"name": table.name, "next": last + 1}
        target.execute(text("SELECT setval(pg_get_serial_sequence(:name, 'sequence'), :next, false)"), given)


def _changed(
    table: Table, row: dict[str, Any], moved: Moved, tallies: Mapping[BatchId, Mapping[str, int]]
) -> dict[str, Any]:
    if table is batch:
        return row | dict(tallies.get(row["id"], {}))
    if table is audit:
        return {name: value for name, value in row.items() if name != "sequence"}
    if table is segment:
        return row | _segment_changes(moved.get((row["batch_id"], row["number"])))
    return row


def _segment_changes(copied: MovedSegment | None) -> dict[str, Any]:
    if copied is None:
        return {}
    return {"token": copied.token, "pinned": dump_parts(copied.pinned), **tally_values(copied.tally)}


def _batch_tallies(moved: Moved) -> dict[BatchId, dict[str, int]]:
    sums: dict[BatchId, Tally] = {}
    for (batch_id, _), copied in moved.items():
        sums[BatchId(batch_id)] = sums.get(BatchId(batch_id), Tally()).plus(copied.tally)
    return {batch_id: tally_values(tally) for batch_id, tally in sums.items()}


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _reading(url: str, body: Callable[[Connection], T]) -> T:
    engine = sqlite_engine(sqlite_path(parse_url(url)), begin="BEGIN", clock=time.time)
    try:
        with engine.begin() as connection:
            return body(connection)
    except DBAPIError as error:
        if error.connection_invalidated or "sqlite" not in type(error.orig).__module__:
            raise
        raise sqlite_failure(error) from error
    finally:
        engine.dispose()
