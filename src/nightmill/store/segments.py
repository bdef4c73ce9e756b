"""Segments and their leases: who may answer which lines, and the tallies that follow.

Each write under a lease names its token. The tally of a segment and that of its batch move in one
transaction, segment first, so that two holders never wait for each other.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

from sqlalchemy import ARRAY, BigInteger, Connection, Text, bindparam, func, select, text, update

from nightmill.core.batch import Status, Tally
from nightmill.core.segment import BeatReply, Lease, PinnedPart, Report, Segment, SegmentResult
from nightmill.ids import BatchId, WorkerId
from nightmill.store import schema
from nightmill.store.clock import now
from nightmill.store.schema import DONE, IN_PROGRESS, LEASED, TALLY_COLUMNS, WAITING, batch, segment
from nightmill.store.tallies import (
    add_tally,
    dump_parts,
    load_parts,
    minus,
    set_tally,
    tally_of,
    tally_parameters,
)

_TALLY = tuple(segment.c[name] for name in TALLY_COLUMNS)
_SEGMENT = (segment.c.batch_id, segment.c.number, segment.c.first, segment.c.count)
_LINES = segment.c.count.label("line_count")  # a row has a `count` of its own
_NO_CHANGE = Tally()
_SPARE_BATCHES = 8  # on Postgres others may be leasing all that waits in the first ones

# Batches first, then the segments of one: no planner may sort the many thousands that wait behind the first.
_BATCHES = (
    select(
        batch.c.id,
        batch.c.endpoint,
        batch.c.model,
        batch.c.input_blob_key,
        batch.c.index_blob_key,
        batch.c.expires_at,
    )
    .where(
        text("batch." + schema.IS_IN_PROGRESS),
        batch.c.expires_at > now(),
        select(segment.c.number)
        .where(segment.c.batch_id == batch.c.id, segment.c.state == WAITING)
        .limit(1)
        .scalar_subquery()
        .is_not(None),
    )
    .order_by(batch.c.sequence)
    .limit(bindparam("batch_limit"))
)
# The share lock makes a cancel wait for this lease or this lease see the cancel (SQLite has one writer).
_OWNER = (
    select(batch.c.id)
    .where(batch.c.id == bindparam("of_batch_id"), batch.c.status == IN_PROGRESS, batch.c.expires_at > now())
    .with_for_update(read=True)
    .cte("owner")
)
_NEXT = (
    select(segment.c.number)
    .where(segment.c.batch_id == select(_OWNER.c.id).scalar_subquery(), segment.c.state == WAITING)
    .order_by(segment.c.number)
    .limit(bindparam("segment_limit"))
    .with_for_update(skip_locked=True, of=segment)
)
# By number, not by a join with what `_NEXT` finds: Postgres would then read all that waits.
_LEASE = (
    update(segment)
    .where(
        segment.c.batch_id == bindparam("of_batch_id"),
        segment.c.number.in_(bindparam("of_numbers", expanding=True)),
    )
    .values(
        state=LEASED,
        token=segment.c.token + 1,
        worker_id=bindparam("new_worker_id"),
        lease_expires_at=now() + bindparam("ttl_s"),
    )
    .returning(*_SEGMENT, segment.c.token, segment.c.pinned, *_TALLY)
)
_OF_LEASE = (
    segment.c.batch_id == bindparam("of_batch_id"),
    segment.c.number == bindparam("of_number"),
    segment.c.token == bindparam("of_token"),
    segment.c.state == LEASED,
)
_WAITS = {"state": WAITING, "worker_id": None, "lease_expires_at": None}
_HELD_BY_LEASE = select(_LINES, segment.c.pinned, *_TALLY).where(*_OF_LEASE).with_for_update()
_HELD_BY_WORKER = (
    select(segment.c.batch_id, segment.c.number, segment.c.token, _LINES, *_TALLY)
    .where(segment.c.worker_id == bindparam("holder"), text(schema.IS_LEASED))
    .order_by(segment.c.batch_id, segment.c.number)
    .with_for_update()
)
_PROLONG = (
    update(segment).where(*_OF_LEASE).values(lease_expires_at=now() + bindparam("ttl_s"), **set_tally())
)
_TOLD = ("batch_id", "number", "token", *TALLY_COLUMNS)
_told = func.unnest(
    *(bindparam(f"told_{name}", type_=ARRAY(Text if name == "batch_id" else BigInteger)) for name in _TOLD)
).table_valued(*_TOLD)
_told_rows = _told.render_derived(name="told")
# Postgres takes the whole beat as one statement; SQLite, which has no arrays, is a call away anyhow.
_PROLONG_ALL = (
    update(segment)
    .where(
        segment.c.batch_id == _told_rows.c.batch_id,
        segment.c.number == _told_rows.c.number,
        segment.c.token == _told_rows.c.token,
        segment.c.state == LEASED,
    )
    .values(
        lease_expires_at=now() + bindparam("ttl_s"), **{name: _told_rows.c[name] for name in TALLY_COLUMNS}
    )
)
_PIN = update(segment).where(*_OF_LEASE).values(pinned=bindparam("new_pinned"), **set_tally())
_COMPLETE = _PIN.values(state=DONE, worker_id=None, lease_expires_at=None)
_RELEASE = _PIN.values(**_WAITS)
_COUNT = update(batch).where(batch.c.id == bindparam("of_batch_id")).values(**add_tally(batch))
_COUNT_DONE = _COUNT.values(segments_left=batch.c.segments_left - 1)
_STOPPING = select(batch.c.id, batch.c.status).where(
    batch.c.id.in_(bindparam("batch_ids", expanding=True)), batch.c.status != IN_PROGRESS
)
_REAP = update(segment).where(text(schema.IS_LEASED), segment.c.lease_expires_at <= now()).values(**_WAITS)
_RELEASE_ALL = update(segment).where(text(schema.IS_LEASED)).values(**_WAITS)
_RELEASE_OF = _RELEASE_ALL.where(segment.c.worker_id == bindparam("holder"))
_RESULTS = (
    select(*_SEGMENT, segment.c.token, segment.c.pinned, (segment.c.state == DONE).label("is_done"), *_TALLY)
    .where(segment.c.batch_id == bindparam("of_batch_id"), segment.c.number > bindparam("after_number"))
    .order_by(segment.c.number)
    .limit(bindparam("segment_limit"))
)


def lease_segments(connection: Connection, worker_id: WorkerId, limit: int, ttl_s: float) -> Sequence[Lease]:
    leases: list[Lease] = []
    for owner in connection.execute(_BATCHES, {"batch_limit": limit + _SPARE_BATCHES}).all():
        waiting = {"of_batch_id": owner.id, "segment_limit": limit - len(leases)}
        numbers = connection.execute(_NEXT, waiting).scalars().all()
        if not numbers:
            continue
        taken = {"of_batch_id": owner.id, "of_numbers": numbers, "new_worker_id": worker_id, "ttl_s": ttl_s}
        rows = connection.execute(_LEASE, taken).all()
        leases += sorted((_as_lease(row, owner, ttl_s) for row in rows), key=_number)
        if len(leases) == limit:
            break
    return leases


def pin_parts(connection: Connection, lease: Lease, parts: Sequence[PinnedPart], report: Report) -> bool:
    held = _held(connection, lease, report)
    if held is None:
        return False
    connection.execute(_PIN, {**_write(lease, report), "new_pinned": dump_parts(parts)})
    _count(connection, lease.segment.batch_id, minus(report.tally, tally_of(held[2:])))
    return True


def beat(connection: Connection, worker_id: WorkerId, reports: Sequence[Report], ttl_s: float) -> BeatReply:
    if not reports:
        return BeatReply(frozenset(), {})
    held = {
        (row.batch_id, row.number, row.token): row
        for row in connection.execute(_HELD_BY_WORKER, {"holder": worker_id})
    }
    lost: set[tuple[BatchId, int]] = set()
    prolonged: list[tuple[Report, Tally]] = []
    changes: dict[BatchId, Tally] = {}
    for report in sorted(reports, key=lambda report: (report.batch_id, report.number)):
        row = held.get((report.batch_id, report.number, report.token))
        if row is None:
            lost.add((report.batch_id, report.number))
            continue
        _check(report, count=row.line_count)
        before = tally_of(row[4:])
        # Beats may overtake each other; the one that counts less is the older one.
        tally = report.tally if report.tally.answered > before.answered else before
        prolonged.append((report, tally))
        change = changes.get(report.batch_id, _NO_CHANGE).plus(minus(tally, before))
        changes[report.batch_id] = change
    if prolonged:
        _prolong(connection, prolonged, ttl_s)
    for batch_id, change in changes.items():
        _count(connection, batch_id, change)
    return BeatReply(frozenset(lost), stopping(connection, {report.batch_id for report in reports}))


def _prolong(connection: Connection, reports: Sequence[tuple[Report, Tally]], ttl_s: float) -> None:
    rows = [
        {**_of(report.batch_id, report.number, report.token), **tally_parameters(tally)}
        for report, tally in reports
    ]
    if connection.dialect.name != "postgresql":
        connection.execute(_PROLONG, [{**row, "ttl_s": ttl_s} for row in rows])
        return
    columns = zip(_TOLD, zip(*(row.values() for row in rows), strict=True), strict=True)
    connection.execute(
        _PROLONG_ALL, {f"told_{name}": list(column) for name, column in columns} | {"ttl_s": ttl_s}
    )


def stopping(connection: Connection, batch_ids: Collection[BatchId]) -> dict[BatchId, Status]:
    rows = connection.execute(_STOPPING, {"batch_ids": sorted(batch_ids)})
    return {batch_id: Status(status) for batch_id, status in rows}


def complete_segment(
    connection: Connection, lease: Lease, report: Report, parts: Sequence[PinnedPart]
) -> bool:
    if report.tally.answered != lease.segment.count:
        raise ValueError(_miscount(report, lease.segment.count))
    held = _held(connection, lease, report)
    if held is None:
        return False
    pinned = dump_parts(_joined(held.pinned, parts))
    connection.execute(_COMPLETE, {**_write(lease, report), "new_pinned": pinned})
    change = tally_parameters(minus(report.tally, tally_of(held[2:])))
    connection.execute(_COUNT_DONE, {"of_batch_id": lease.segment.batch_id, **change})
    return True


def release_segment(
    connection: Connection, lease: Lease, report: Report, parts: Sequence[PinnedPart]
) -> bool:
    held = _held(connection, lease, report)
    if held is None:
        return False
    pinned = dump_parts(_joined(held.pinned, parts))
    connection.execute(_RELEASE, {**_write(lease, report), "new_pinned": pinned})
    _count(connection, lease.segment.batch_id, minus(report.tally, tally_of(held[2:])))
    return True


def reap_segments(connection: Connection) -> int:
    return connection.execute(_REAP).rowcount


def release_all_segments(connection: Connection) -> int:
    return connection.execute(_RELEASE_ALL).rowcount


def release_segments_of(connection: Connection, worker_id: WorkerId) -> int:
    return connection.execute(_RELEASE_OF, {"holder": worker_id}).rowcount


def segment_results(
    connection: Connection, batch_id: BatchId, after: int, limit: int
) -> Sequence[SegmentResult]:
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
    )


def _held(connection: Connection, lease: Lease, report: Report) -> Any:
    """The segment's count, pinned parts and tally; None once the token is old or given back."""
    _check(report, count=lease.segment.count)
    where = _of(lease.segment.batch_id, lease.segment.number, lease.token)
    return connection.execute(_HELD_BY_LEASE, where).one_or_none()


def _of(batch_id: str, number: int, token: int) -> dict[str, Any]:
    return {"of_batch_id": batch_id, "of_number": number, "of_token": token}


def _write(lease: Lease, report: Report) -> dict[str, Any]:
    where = _of(lease.segment.batch_id, lease.segment.number, lease.token)
    return {**where, **tally_parameters(report.tally)}


def _count(connection: Connection, batch_id: BatchId, change: Tally) -> None:
    if change != _NO_CHANGE:
        connection.execute(_COUNT, {"of_batch_id": batch_id, **tally_parameters(change)})


def _joined(pinned: str, parts: Sequence[PinnedPart]) -> Sequence[PinnedPart]:
    """What is pinned already stays as it is pinned; the holder's own part comes behind it."""
    earlier = load_parts(pinned)
    keys = {part.key for part in earlier}
    return [*earlier, *(part for part in parts if part.key not in keys)]


def _check(report: Report, *, count: int) -> None:
    if report.tally.answered > count:
        raise ValueError(_miscount(report, count))


def _miscount(report: Report, count: int) -> str:
    answered = report.tally.answered
    return (
        f"{report.batch_id} segment {report.number} has {count} lines, but {answered} are reported answered"
    )
