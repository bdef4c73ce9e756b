"""Upstreams as they were changed at run time, and what workers last reported about each.

A setting is replaced only by a change that names its revision, so that of two changes made at once the second
is refused. Its document may hold a key: it is read by workers, and never shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from nightmill.core.audit import Actor, AuditAction
from nightmill.core.upstream_setting import UpstreamSetting, UpstreamState
from nightmill.ids import WorkerId
from nightmill.store import audit
from nightmill.store.clock import now
from nightmill.store.rows import columns_of, insert_if_absent
from nightmill.store.upstream_schema import upstream_report, upstream_setting
from nightmill.store.verbs import Verbs, read, write

_COLUMNS = columns_of(UpstreamSetting, upstream_setting)
_SETTINGS = select(*_COLUMNS).order_by(upstream_setting.c.name)
_NEW: Final[dict[str, Any]] = {
    "document": bindparam("new_document"),
    "state": bindparam("new_state"),
    "changed_at": now(),
}
_OF_REVISION = (
    upstream_setting.c.name == bindparam("of_name"),
    upstream_setting.c.revision == bindparam("of_revision"),
)
_ADD = {
    dialect: statement.returning(*_COLUMNS)
    for dialect, statement in insert_if_absent(
        upstream_setting, {"name": bindparam("of_name"), "revision": 1, **_NEW}
    ).items()
}
_REPLACE = (
    update(upstream_setting)
    .where(*_OF_REVISION)
    .values(revision=upstream_setting.c.revision + 1, **_NEW)
    .returning(*_COLUMNS)
)
_FORGET = delete(upstream_setting).where(*_OF_REVISION)

_REPORTED: Final[dict[str, Any]] = {
    "upstream": bindparam("of_upstream"),
    "worker_id": bindparam("by_worker_id"),
    "document": bindparam("new_document"),
    "reported_at": now(),
}
_REPORT_KEY = ("upstream", "worker_id")
_REPORT = {
    "sqlite": sqlite.insert(upstream_report)
    .values(_REPORTED)
    .on_conflict_do_update(_REPORT_KEY, set_={"document": bindparam("new_document"), "reported_at": now()}),
    "postgresql": postgresql.insert(upstream_report)
    .values(_REPORTED)
    .on_conflict_do_update(
        index_elements=_REPORT_KEY, set_={"document": bindparam("new_document"), "reported_at": now()}
    ),
}
_REPORTS = (
    select(
        upstream_report.c.upstream,
        upstream_report.c.worker_id,
        upstream_report.c.document,
        upstream_report.c.reported_at,
    )
    .where(upstream_report.c.reported_at > now() - bindparam("max_age_s"))
    .order_by(upstream_report.c.upstream, upstream_report.c.worker_id)
)
_DELETE_OLD = delete(upstream_report).where(upstream_report.c.reported_at <= now() - bindparam("max_age_s"))
_DELETE_OF_WORKER = delete(upstream_report).where(upstream_report.c.worker_id == bindparam("of_worker_id"))
_DELETE_ALL = delete(upstream_report)


class WorkerReport(NamedTuple):
    """What one worker reported about one upstream, and when: Unix seconds of the store's clock."""

    upstream: str
    worker_id: WorkerId
    document: str
    reported_at: float


class Upstreams(Verbs):
    """Settings of upstreams that were changed at run time, and the reports of workers."""

    @read
    @staticmethod
    def settings(connection: Connection) -> Sequence[UpstreamSetting]:
        """All settings, by name."""
        return [_as_setting(row) for row in connection.execute(_SETTINGS)]

    @write
    @staticmethod
    def put(
        connection: Connection,
        name: str,
        *,
        document: str | None,
        state: UpstreamState,
        revision: int | None,
        action: AuditAction = AuditAction.UPSTREAM_CHANGED,
        by: Actor | None = None,
    ) -> UpstreamSetting | None:
        """Replaces the setting of that revision, or adds the first. None if another change came before.

        Args:
            document: JSON of the upstream's settings; None for those of the settings file.
            revision: the one that is replaced; None if there must be no setting yet.
            action: how the audit log names the change.
        """
        given: dict[str, Any] = {"of_name": name, "new_document": document, "new_state": state.value}
        if revision is None:
            row = connection.execute(_ADD[connection.dialect.name], given).one_or_none()
        else:
            row = connection.execute(_REPLACE, {**given, "of_revision": revision}).one_or_none()
        if row is None:
            return None
        made = _as_setting(row)
        audit.record(connection, by, action, name, project_id=None, detail=f"revision {made.revision}")
        return made

    @write
    @staticmethod
    def forget(connection: Connection, name: str, revision: int, *, by: Actor | None = None) -> bool:
        """Deletes the setting of that revision, so that the settings file holds again. False if another
        change came before.
        """
        given = {"of_name": name, "of_revision": revision}
        if connection.execute(_FORGET, given).rowcount == 0:
            return False
        audit.record(connection, by, AuditAction.UPSTREAM_RESET, name, project_id=None)
        return True

    @write
    @staticmethod
    def report(connection: Connection, worker_id: WorkerId, documents: Mapping[str, str]) -> None:
        """Stores what a worker reports about upstreams, in place of its reports before.

        Args:
            documents: JSON of an `UpstreamReport`, by the name of its upstream.
        """
        rows = [
            {"of_upstream": name, "by_worker_id": worker_id, "new_document": document}
            for name, document in sorted(documents.items())
        ]
        if rows:
            connection.execute(_REPORT[connection.dialect.name], rows)

    @read
    @staticmethod
    def reports(connection: Connection, *, max_age_s: float) -> Sequence[WorkerReport]:
        """The reports of the last `max_age_s` seconds, by upstream and worker."""
        return [
            WorkerReport(upstream, WorkerId(worker_id), document, reported_at)
            for upstream, worker_id, document, reported_at in connection.execute(
                _REPORTS, {"max_age_s": max_age_s}
            )
        ]

    @write
    @staticmethod
    def delete_old_reports(connection: Connection, *, max_age_s: float) -> int:
        """Deletes reports that are `max_age_s` seconds old or older. Returns how many."""
        return connection.execute(_DELETE_OLD, {"max_age_s": max_age_s}).rowcount


def delete_reports_of(connection: Connection, worker_id: WorkerId) -> None:
    connection.execute(_DELETE_OF_WORKER, {"of_worker_id": worker_id})


def delete_all_reports(connection: Connection) -> None:
    connection.execute(_DELETE_ALL)


def _as_setting(row: Sequence[Any]) -> UpstreamSetting:
    name, document, state, revision, changed_at = row
    return UpstreamSetting(name, document, UpstreamState(state), revision, changed_at)
