"""The state of single lines of running batches: a client asks, and the workers that hold the lines report.

A batch whose lines are asked for is marked for a while. A worker learns of the mark with its heartbeat and
reports the lines of its segments, once per heartbeat; otherwise nothing is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from nightmill.ids import BatchId
from nightmill.store.batch_watch_schema import line_report
from nightmill.store.clock import now
from nightmill.store.rows import insert_if_absent
from nightmill.store.schema import batch, segment
from nightmill.store.verbs import Verbs, read, write

_WANT = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(lines_wanted_until=now() + bindparam("wanted_s"))
    .returning((batch.c.lines_wanted_until - bindparam("wanted_s")).label("asked_at"))
)
_REPLACE = (
    update(line_report)
    .where(
        line_report.c.batch_id == bindparam("of_batch_id"),
        line_report.c.number == bindparam("of_number"),
        line_report.c.token <= bindparam("new_token"),
    )
    .values(token=bindparam("new_token"), document=bindparam("new_document"), reported_at=now())
)
_ADD = insert_if_absent(
    line_report,
    {
        "batch_id": bindparam("of_batch_id"),
        "number": bindparam("of_number"),
        "token": bindparam("new_token"),
        "document": bindparam("new_document"),
        "reported_at": now(),
    },
)
_GET = select(line_report.c.document).where(
    line_report.c.batch_id == bindparam("of_batch_id"),
    line_report.c.number == bindparam("of_number"),
    line_report.c.token == bindparam("of_token"),
    line_report.c.reported_at >= bindparam("since"),
)
_INDEX = select(batch.c.index_blob_key).where(batch.c.id == bindparam("of_batch_id"))
_NUMBER_AT = (
    select(segment.c.number)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.first <= bindparam("place"),
        segment.c.first + segment.c.count > bindparam("place"),
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class LineReport:
    """The lines of one leased segment as its worker sees them; `document` is JSON."""

    batch_id: BatchId
    number: int
    token: int
    document: str


class LineReports(Verbs):
    """What workers say of the lines that they hold."""

    @write
    @staticmethod
    def want(connection: Connection, batch_id: BatchId, *, wanted_s: float) -> float:
        """Asks the workers for reports for a while. Returns the time from which a report answers this."""
        given = {"of_batch_id": batch_id, "wanted_s": wanted_s}
        return connection.execute(_WANT, given).scalar_one()

    @write
    @staticmethod
    def put(connection: Connection, reports: Sequence[LineReport]) -> None:
        """Replaces the reports of the segments. A report under an older token changes nothing."""
        for report in reports:
            given = {
                "of_batch_id": report.batch_id,
                "of_number": report.number,
                "new_token": report.token,
                "new_document": report.document,
            }
            if connection.execute(_REPLACE, given).rowcount == 0:
                connection.execute(_ADD[connection.dialect.name], given)

    @read
    @staticmethod
    def get(
        connection: Connection, batch_id: BatchId, number: int, *, token: int, since: float
    ) -> str | None:
        """The document of the segment under this token; None while there is none from `since` on."""
        given = {"of_batch_id": batch_id, "of_number": number, "of_token": token, "since": since}
        return connection.execute(_GET, given).scalar_one_or_none()

    @read
    @staticmethod
    def number_at(connection: Connection, batch_id: BatchId, place: int) -> int | None:
        """The segment that has the record at `place` of the line index; None once the batch has ended."""
        return connection.execute(_NUMBER_AT, {"of_batch_id": batch_id, "place": place}).scalar_one_or_none()

    @read
    @staticmethod
    def index_blob_key(connection: Connection, batch_id: BatchId) -> str | None:
        """The key of the line index; None without one."""
        return connection.execute(_INDEX, {"of_batch_id": batch_id}).scalar_one_or_none()
