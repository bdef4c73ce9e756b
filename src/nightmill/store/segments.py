"""Segments and their leases: which worker may answer which lines, and the tallies that follow.

Each write under a lease names its token (see `leased_table`). The tally of a segment and that of its batch
move in one transaction, segment first, so that two lease holders never wait for each other.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, cast

from sqlalchemy import ARRAY, BigInteger, Connection, Text, bindparam, func, select, text, update

from nightmill.core.batch import Tally
from nightmill.core.schedule import BATCH_ORDER
from nightmill.core.segment import HeartbeatReply, Lease, PinnedPart, Segment, SegmentReport, SegmentResult
from nightmill.ids import BatchId, WorkerId
from nightmill.store import schema
from nightmill.store.batches import Batches, load_options
from nightmill.store.clock import now
from nightmill.store.leasable import held_by_no_other, may_be_sent
from nightmill.store.leased_table import LeasedTable
from nightmill.store.schema import DONE, LEASED, TALLY_COLUMNS, WAITING, batch, segment
from nightmill.store.tallies import (
    add_tally,
    dump_parts,
    joined_parts,
    load_parts,
    minus,
    set_tally,
    tally_of,
    tally_parameters,
)
from nightmill.store.verbs import Verbs, read, write

_TALLY = tuple(segment.c[name] for name in TALLY_COLUMNS)
_SEGMENT = (segment.c.batch_id, segment.c.number, segment.c.first, segment.c.count)
_LINES = segment.c.count.label("line_count")  # a row object has a method named `count`
_NO_CHANGE = Tally()
_EXTRA_BATCHES = 8  # on Postgres others may be leasing all that waits in the first ones

LEASES = LeasedTable(
    table=segment,
    row=(segment.c.batch_id == bindparam("of_batch_id"), segment.c.number == bindparam("of_number")),
    all_leased=(text(schema.IS_LEASED),),
)

# Batches first, then the segments of one: no planner may sort the many thousands that wait behind the first.
_OWNER_COLUMNS = (
    batch.c.id,
    batch.c.endpoint,
    batch.c.model,
    batch.c.input_blob_key,
    batch.c.index_blob_key,
    batch.c.expires_at,
    batch.c.project_id,
    batch.c.sequence,
    batch.c.input_bytes,
    batch.c.priority,
    batch.c.concurrency,
    batch.c.options,
)
_BATCHES = (
    select(*_OWNER_COLUMNS)
    .where(
        text("batch." + schema.IS_SENDABLE),
        batch.c.expires_at + 0 > now(),  # an expression, so that no planner takes the index by deadline
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
    .order_by(*(batch.c[name] for name in BATCH_ORDER))
    .limit(bindparam("batch_limit"))
)
_PREFERRED = select(*_OWNER_COLUMNS).where(batch.c.id.in_(bindparam("of_batch_ids", expanding=True)))
# The share lock makes a cancel wait for this lease or this lease see the cancel (SQLite has one writer).
_OWNER = (
    select(batch.c.id, batch.c.canary_segments)
    .where(
        batch.c.id == bindparam("of_batch_id"),
        text("batch." + schema.IS_SENDABLE),
        batch.c.expires_at > now(),
    )
    .with_for_update(read=True)
    .cte("owner")
)
# For a batch with a concurrency of its own: two workers must not both find that no other has a lease.
_LOCKED_OWNER = (
    select(batch.c.id).where(batch.c.id == bindparam("of_batch_id")).with_for_update(skip_locked=True)
)
_HELD_BY_NO_OTHER = select(batch.c.id).where(batch.c.id == bindparam("of_batch_id"), held_by_no_other())
_NEXT = (
    select(segment.c.number)
    .where(
        segment.c.batch_id == select(_OWNER.c.id).scalar_subquery(),
        segment.c.state == WAITING,
        may_be_sent(select(_OWNER.c.canary_segments).scalar_subquery()),
    )
    .order_by(segment.c.number)
    .limit(bindparam("segment_limit"))
    .with_for_update(skip_locked=True, of=segment)
)
# By number, not by a join with what `_NEXT` finds: Postgres would then read all that waits.
_NUMBERED = (
    segment.c.batch_id == bindparam("of_batch_id"),
    segment.c.number.in_(bindparam("of_numbers", expanding=True)),
)
_LEASE = LEASES.lease(_NUMBERED).returning(*_SEGMENT, segment.c.token, segment.c.pinned, *_TALLY)
_HELD_BY_LEASE = select(_LINES, segment.c.pinned, *_TALLY).where(*LEASES.fence).with_for_update()
_HELD_BY_WORKER = (
    select(segment.c.batch_id, segment.c.number, segment.c.token, _LINES, *_TALLY)
    .where(segment.c.worker_id == bindparam("holder"), text(schema.IS_LEASED))
    .order_by(segment.c.batch_id, segment.c.number)
    .with_for_update()
)
_RENEW = LEASES.renew().values(**set_tally())
_REPORT_COLUMNS = ("batch_id", "number", "token", *TALLY_COLUMNS)
_reported = (
    func.unnest(
        *(
            bindparam(f"reported_{name}", type_=ARRAY(Text if name == "batch_id" else BigInteger))
            for name in _REPORT_COLUMNS
        )
    )
    .table_valued(*_REPORT_COLUMNS)
    .render_derived(name="reported")
)
# Postgres renews all leases of a worker in one statement; SQLite has no arrays, and no network in between.
_RENEW_ALL = (
    update(segment)
    .where(
        segment.c.batch_id == _reported.c.batch_id,
        segment.c.number == _reported.c.number,
        segment.c.token == _reported.c.token,
        segment.c.state == LEASED,
    )
    .values(
        lease_expires_at=now() + bindparam("ttl_s"), **{name: _reported.c[name] for name in TALLY_COLUMNS}
    )
)
_PIN = update(segment).where(*LEASES.fence).values(pinned=bindparam("new_pinned"), **set_tally())
_COMPLETE = _PIN.values(**{**LEASES.released, "state": DONE})
_RELEASE = _PIN.values(**LEASES.released)
_COUNT = update(batch).where(batch.c.id == bindparam("of_batch_id")).values(**add_tally(batch))
_COUNT_DONE = _COUNT.values(segments_left=batch.c.segments_left - 1)
_COUNT_RETRIES = (
    update(batch)
    .where(batch.c.id == bindparam("of_batch_id"))
    .values(retries=batch.c.retries + bindparam("more"))
)
_RELEASE_EXPIRED = LEASES.release_expired()
_RESULTS = (
    select(*_SEGMENT, segment.c.token, segment.c.pinned, (segment.c.state == DONE).label("is_done"), *_TALLY)
    .where(segment.c.batch_id == bindparam("of_batch_id"), segment.c.number > bindparam("after_number"))
    .order_by(segment.c.number)
    .limit(bindparam("segment_limit"))
)
_LAST = select(func.coalesce(func.max(segment.c.number) + 1, 0)).where(
    segment.c.batch_id == bindparam("of_batch_id")
)


class Segments(Verbs):
    """Segments of batches that are in progress or being ended."""

    @write
    @staticmethod
    def lease(
        connection: Connection,
        worker_id: WorkerId,
        *,
        limit: int,
        ttl_s: float,
        preferred: Sequence[tuple[BatchId, int]] = (),
        passed_over: Set[BatchId] = frozenset(),
    ) -> Sequence[Lease]:
        """Leases waiting segments of `in_progress` batches before their deadline: of the preferred batches,
        then of the others, oldest first, until `limit` is reached.

        Args:
            preferred: batches and how many segments of each, which may exceed `limit` together.
            passed_over: batches of which no segment is leased, a few dozen at most.
        """
        leases: list[Lease] = []
        if preferred:
            found = connection.execute(_PREFERRED, {"of_batch_ids": [batch_id for batch_id, _ in preferred]})
            owners = {owner.id: owner for owner in found}
            for batch_id, count in preferred:
                if (owner := owners.get(batch_id)) is not None:
                    leases += _lease_of(connection, owner, worker_id, limit=count, ttl_s=ttl_s)
        if len(leases) >= limit:
            return leases
        most = limit + _EXTRA_BATCHES + len(passed_over)
        for owner in connection.execute(_BATCHES, {"batch_limit": most, "by_worker_id": worker_id}).all():
            if owner.id in passed_over:
                continue
            leases += _lease_of(connection, owner, worker_id, limit=limit - len(leases), ttl_s=ttl_s)
            if len(leases) >= limit:
                break
        return leases

    @write
    @staticmethod
    def pin_parts(
        connection: Connection, lease: Lease, parts: Sequence[PinnedPart], report: SegmentReport
    ) -> bool:
        """Records what a new lease holder found: `parts` and the tally replace what the store knew.

        False when the token is no longer the newest.
        """
        held = _held(connection, lease, report)
        if held is None:
            return False
        connection.execute(_PIN, {**_write(lease, report), "new_pinned": dump_parts(parts)})
        _count(connection, lease.segment.batch_id, minus(report.tally, tally_of(held[2:])))
        _count_retries(connection, report)
        return True

    @write
    @staticmethod
    def renew(
        connection: Connection, worker_id: WorkerId, reports: Sequence[SegmentReport], *, ttl_s: float
    ) -> HeartbeatReply:
        """Renews every lease in `reports` and moves the tallies. Reports under old tokens change nothing.

        Reports may overtake each other: one that counts less than an earlier one only renews the lease.
        Leases of a batch that is `cancelling` or `finalizing` still count until they are released or expire.
        """
        if not reports:
            return HeartbeatReply(frozenset(), {})
        held = {
            (row.batch_id, row.number, row.token): row
            for row in connection.execute(_HELD_BY_WORKER, {"holder": worker_id})
        }
        lost: set[tuple[BatchId, int]] = set()
        renewed: list[tuple[SegmentReport, Tally]] = []
        changes: dict[BatchId, Tally] = {}
        for report in sorted(reports, key=lambda report: (report.batch_id, report.number)):
            row = held.get((report.batch_id, report.number, report.token))
            if row is None:
                lost.add((report.batch_id, report.number))
                continue
            _check(report, count=row.line_count)
            before = tally_of(row[4:])
            tally = report.tally if report.tally.answered > before.answered else before
            renewed.append((report, tally))
            change = changes.get(report.batch_id, _NO_CHANGE).plus(minus(tally, before))
            changes[report.batch_id] = change
        if renewed:
            _renew(connection, renewed, ttl_s)
        for batch_id, change in changes.items():
            _count(connection, batch_id, change)
        terms = Batches.terms(connection, {report.batch_id for report in reports})
        return HeartbeatReply(frozenset(lost), terms)

    @write
    @staticmethod
    def complete(
        connection: Connection, lease: Lease, report: SegmentReport, parts: Sequence[PinnedPart]
    ) -> bool:
        """Ends the lease of a segment whose every line is answered. False when the token is outdated.

        Of `parts`, those not pinned yet are pinned behind the others; a pinned part keeps its length. After
        the last segment of a batch, `batches.settled` returns the batch.

        Raises:
            ValueError: the tally does not add up to the segment's count.
        """
        if report.tally.answered != lease.segment.count:
            raise ValueError(_miscount(report, lease.segment.count))
        held = _held(connection, lease, report)
        if held is None:
            return False
        pinned = dump_parts(joined_parts(held.pinned, parts))
        connection.execute(_COMPLETE, {**_write(lease, report), "new_pinned": pinned})
        change = tally_parameters(minus(report.tally, tally_of(held[2:])))
        connection.execute(_COUNT_DONE, {"of_batch_id": lease.segment.batch_id, **change})
        _count_retries(connection, report)
        return True

    @write
    @staticmethod
    def release(
        connection: Connection, lease: Lease, report: SegmentReport, parts: Sequence[PinnedPart]
    ) -> bool:
        """Gives an unfinished segment back with its parts; the next lease holder goes on behind them.

        False when the token is no longer the newest.
        """
        held = _held(connection, lease, report)
        if held is None:
            return False
        pinned = dump_parts(joined_parts(held.pinned, parts))
        connection.execute(_RELEASE, {**_write(lease, report), "new_pinned": pinned})
        _count(connection, lease.segment.batch_id, minus(report.tally, tally_of(held[2:])))
        return True

    @write
    @staticmethod
    def release_expired(connection: Connection) -> int:
        """Segments whose lease has expired wait again. Returns how many."""
        return connection.execute(_RELEASE_EXPIRED).rowcount

    @read
    @staticmethod
    def count(connection: Connection, batch_id: BatchId) -> int:
        """How many segments the batch has; their numbers have no gaps."""
        return connection.execute(_LAST, {"of_batch_id": batch_id}).scalar_one()

    @read
    @staticmethod
    def results(
        connection: Connection, batch_id: BatchId, *, after: int = -1, limit: int = 1_000
    ) -> Sequence[SegmentResult]:
        """Segments in order of number, from `after + 1` on."""
        given = {"of_batch_id": batch_id, "after_number": after, "segment_limit": limit}
        rows = cast("Iterable[Any]", connection.execute(_RESULTS, given))
        return [
            SegmentResult(
                segment=Segment(*row[:4]),
                token=row.token,
                pinned=load_parts(row.pinned),
                tally=tally_of(row[7:]),
                is_done=bool(row.is_done),
            )
            for row in rows
        ]


def segment_row(it: Segment) -> Mapping[str, str | int]:
    return {
        "batch_id": it.batch_id,
        "number": it.number,
        "first": it.first,
        "count": it.count,
        "state": "waiting",
        "pinned": "[]",
    }


def _lease_of(
    connection: Connection, owner: Any, worker_id: WorkerId, *, limit: int, ttl_s: float
) -> Sequence[Lease]:
    """Leases waiting segments of one batch by number."""
    if owner.concurrency is not None and not _may_hold_alone(connection, owner, worker_id):
        return ()
    numbers = connection.execute(_NEXT, {"of_batch_id": owner.id, "segment_limit": limit}).scalars().all()
    if not numbers:
        return ()
    given = {"of_batch_id": owner.id, "of_numbers": numbers, "new_worker_id": worker_id, "ttl_s": ttl_s}
    rows = connection.execute(_LEASE, given).all()
    return sorted((_as_lease(row, owner, ttl_s) for row in rows), key=_number)


def _may_hold_alone(connection: Connection, owner: Any, worker_id: WorkerId) -> bool:
    """Whether no other worker has a lease of the batch, nor gets one in another transaction meanwhile."""
    if connection.execute(_LOCKED_OWNER, {"of_batch_id": owner.id}).first() is None:
        return False
    given = {"of_batch_id": owner.id, "by_worker_id": worker_id}
    return connection.execute(_HELD_BY_NO_OTHER, given).first() is not None


def _number(lease: Lease) -> int:
    return lease.segment.number


def _as_lease(row: Any, owner: Any, ttl_s: float) -> Lease:
    return Lease(
        segment=Segment(*row[:4]),
        token=row.token,
        pinned=load_parts(row.pinned),
        tally=tally_of(row[6:]),
        endpoint=owner.endpoint,
        model=owner.model,
        input_blob_key=owner.input_blob_key,
        index_blob_key=owner.index_blob_key,
        deadline=owner.expires_at,
        ttl_s=ttl_s,
        project_id=owner.project_id,
        batch_sequence=owner.sequence,
        batch_bytes=owner.input_bytes,
        priority=owner.priority,
        concurrency=owner.concurrency,
        records_attempts=owner.options is not None and load_options(owner.options).record_attempts,
    )


def _renew(connection: Connection, reports: Sequence[tuple[SegmentReport, Tally]], ttl_s: float) -> None:
    if connection.dialect.name != "postgresql":
        rows = [
            {
                **_fence(report.batch_id, report.number, report.token),
                **tally_parameters(tally),
                "ttl_s": ttl_s,
            }
            for report, tally in reports
        ]
        connection.execute(_RENEW, rows)
        return
    values = [
        (report.batch_id, report.number, report.token, *tally_parameters(tally).values())
        for report, tally in reports
    ]
    columns = zip(_REPORT_COLUMNS, zip(*values, strict=True), strict=True)
    connection.execute(
        _RENEW_ALL, {f"reported_{name}": list(column) for name, column in columns} | {"ttl_s": ttl_s}
    )


def _held(connection: Connection, lease: Lease, report: SegmentReport) -> Any:
    """The segment's count, pinned parts and tally; None once the token is outdated or the lease released."""
    _check(report, count=lease.segment.count)
    fence = _fence(lease.segment.batch_id, lease.segment.number, lease.token)
    return connection.execute(_HELD_BY_LEASE, fence).one_or_none()


def _fence(batch_id: str, number: int, token: int) -> dict[str, Any]:
    return {"of_batch_id": batch_id, "of_number": number, "held_token": token}


def _write(lease: Lease, report: SegmentReport) -> dict[str, Any]:
    fence = _fence(lease.segment.batch_id, lease.segment.number, lease.token)
    return {**fence, **tally_parameters(report.tally)}


def _count(connection: Connection, batch_id: BatchId, change: Tally) -> None:
    if change != _NO_CHANGE:
        connection.execute(_COUNT, {"of_batch_id": batch_id, **tally_parameters(change)})


def _count_retries(connection: Connection, report: SegmentReport) -> None:
    if report.retries:
        connection.execute(_COUNT_RETRIES, {"of_batch_id": report.batch_id, "more": report.retries})


def _check(report: SegmentReport, *, count: int) -> None:
    if report.tally.answered > count:
        raise ValueError(_miscount(report, count))


def _miscount(report: SegmentReport, count: int) -> str:
    answered = report.tally.answered
    return (
        f"{report.batch_id} segment {report.number} has {count} lines, but {answered} are reported answered"
    )
