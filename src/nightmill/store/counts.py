"""What processes have counted: one row of sums for each, and one for all processes that have ended.

A process replaces its row every few seconds. When it has ended, its sums are added to those of the ended
processes in the transaction that deletes its row, so that the sum of all rows never falls.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Delete, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.counts import ProcessCounts
from nightmill.core.process_info import ProcessInfo
from nightmill.ids import WorkerId
from nightmill.store.clock import now
from nightmill.store.rows import insert_if_absent
from nightmill.store.upstream_schema import process_counts
from nightmill.store.verbs import Verbs, read, write

_ENDED: Final = "ended"
"""In place of an id: the sums of ended processes."""

_NEW: Final[dict[str, Any]] = {"document": bindparam("new_document"), "reported_at": now()}
_FIRST: Final[dict[str, Any]] = {**_NEW, "about": bindparam("new_about")}
_ROW: Final[dict[str, Any]] = {"process_id": bindparam("of_process_id"), **_FIRST}
_PUT = {
    "sqlite": sqlite.insert(process_counts).values(_ROW).on_conflict_do_update(("process_id",), set_=_FIRST),
    "postgresql": postgresql.insert(process_counts)
    .values(_ROW)
    .on_conflict_do_update(index_elements=("process_id",), set_=_FIRST),
}
_REPLACE = (
    update(process_counts).where(process_counts.c.process_id == bindparam("of_process_id")).values(_NEW)
)
_DOCUMENTS = select(process_counts.c.document).order_by(process_counts.c.process_id)
_ADD_ENDED = insert_if_absent(process_counts, {"process_id": _ENDED, "document": "{}", "reported_at": now()})
_ENDED_SUMS = select(process_counts.c.document).where(process_counts.c.process_id == _ENDED).with_for_update()
IS_PROCESS = process_counts.c.process_id != _ENDED
_END_ALL = delete(process_counts).where(IS_PROCESS)
_END_ONE = _END_ALL.where(process_counts.c.process_id == bindparam("of_process_id"))
_END_SILENT = _END_ALL.where(process_counts.c.reported_at <= now() - bindparam("max_age_s"))


class Counts(Verbs):
    """Sums over processes since their start."""

    @write
    @staticmethod
    def report(
        connection: Connection,
        process_id: WorkerId,
        counts: ProcessCounts,
        *,
        is_first: bool,
        info: ProcessInfo | None = None,
    ) -> bool:
        """Replaces the sums of a process. False, with no change, if its row is gone: it was
        silent for long, and its sums count as those of an ended process.

        Args:
            is_first: adds the row; a row of an earlier process with the same id is one of an ended process.
            info: what the process says of itself; stored with the first report.
        """
        given = {"of_process_id": process_id, "new_document": _encoded(counts)}
        if is_first:
            end_process(connection, process_id)
            about = None if info is None else msgspec.json.encode(info).decode()
            connection.execute(_PUT[connection.dialect.name], {**given, "new_about": about})
            return True
        return connection.execute(_REPLACE, given).rowcount > 0

    @read
    @staticmethod
    def total(connection: Connection) -> ProcessCounts:
        """The sums of all processes, ended ones included."""
        return _sum([row.document for row in connection.execute(_DOCUMENTS)])

    @write
    @staticmethod
    def end_silent(connection: Connection, *, max_age_s: float) -> int:
        """Counts processes as ended that have not reported for `max_age_s` seconds. Returns how many."""
        return _end(connection, _END_SILENT, {"max_age_s": max_age_s})


def end_process(connection: Connection, process_id: WorkerId) -> None:
    """Adds the sums of a process to those of ended processes."""
    _end(connection, _END_ONE, {"of_process_id": process_id})


def end_all_processes(connection: Connection) -> None:
    """As `end_process`, for all."""
    _end(connection, _END_ALL, {})


def _end(connection: Connection, statement: Delete, given: dict[str, Any]) -> int:
    ended = [
        row.document for row in connection.execute(statement.returning(process_counts.c.document), given)
    ]
    if ended:
        connection.execute(_ADD_ENDED[connection.dialect.name])
        before = connection.execute(_ENDED_SUMS).scalar_one()
        total = _encoded(_sum([before, *ended]))
        connection.execute(_REPLACE, {"of_process_id": _ENDED, "new_document": total})
    return len(ended)


def _encoded(counts: ProcessCounts) -> str:
    return msgspec.json.encode(counts).decode()


def _sum(documents: Sequence[str]) -> ProcessCounts:
    total = ProcessCounts()
    for document in documents:
        total.add(msgspec.json.decode(document, type=ProcessCounts))
    return total
