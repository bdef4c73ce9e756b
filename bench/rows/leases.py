"""Leases per second: verbs of the store, many processes at once, with up to a million waiting segments.

Every process opens the store as a worker does. The CPU cost of a turn, in the client and in Postgres, can be
measured on a loaded machine; the number of turns per second needs a quiet one.
"""

import shutil
from collections.abc import Iterator
from typing import Any

from bench import machine, tools
from bench.figures import Bench, Better, Figure
from bench.fleet_leases import CONCURRENCY_LIMIT, UPSTREAM
from bench.fleet_postgres import Postgres, postgres
from bench.fleet_store import backlog_ms, filled, run_workers

ROW = "leases"
_PER_BATCH = 1_000
_PROCESSES = (1, 4, 8)
_OTHER_WORKERS = (10, 100, 1_000)
_BEATING = 10
_AT_ONCE = 8
_CLAIMED_BEFORE = 2_226
"""Lease-and-complete turns per second of a minimal prototype on two cores (eight connections, no checks)."""


def measure(bench: Bench) -> list[Figure]:
    figures = list(_of_sqlite(bench))
    try:
        with postgres(bench.folder / "postgres") as server:
            figures += _of_postgres(bench, server)
    except tools.CannotInstallError as error:
        print(f"SKIPPED Postgres: {error}")
    return figures


def _of_sqlite(bench: Bench) -> Iterator[Figure]:
    folder = bench.folder / "leases"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    url = f"sqlite:///{folder / 'nightmill.sqlite'}"
    waiting = bench.sizes.waiting_segments
    made_per_s = filled(url, batches=waiting // _PER_BATCH, segments=_PER_BATCH)
    name = f"SQLite, {waiting:,} waiting"
    yield Figure(ROW, f"{name}: segments made", made_per_s, "/s")
    yield Figure(ROW, f"{name}: what waits, counted", backlog_ms(url, times=50), "ms", 10)
    for processes in _PROCESSES:
        sample = _one(bench, url, "lease", processes=processes, amount=1)
        yield from _lease_figures(f"{name}, {processes} processes", sample, target=None)
    shutil.rmtree(folder)


def _of_postgres(bench: Bench, server: Postgres) -> Iterator[Figure]:
    url, waiting = server.fresh(), bench.sizes.waiting_segments
    made_per_s = filled(url, batches=waiting // _PER_BATCH, segments=_PER_BATCH)
    server.of(url, "VACUUM ANALYZE")
    row_bytes = int(server.of(url, "SELECT pg_total_relation_size('segment')")) / waiting
    name = f"Postgres, {waiting:,} waiting"
    yield Figure(ROW, f"{name}: segments made", made_per_s, "/s")
    yield Figure(ROW, f"{name}: bytes of a segment, indexes included", row_bytes, "B")
    yield Figure(ROW, f"{name}: what waits, counted", backlog_ms(url, times=50), "ms", 10)
    for processes in _PROCESSES:
        sample = _one(bench, url, "lease", processes=processes, amount=1, server=server)
        target = _CLAIMED_BEFORE if processes == _PROCESSES[-1] else None
        yield from _lease_figures(f"{name}, {processes} processes", sample, target=target)
    kept = f"{url}?prepared_statement_cache_size=100"
    sample = _one(bench, kept, "lease", processes=4, amount=1, server=server) | {"what": "lease, prepared"}
    yield from _lease_figures(f"{name}, 4 processes, prepared statements", sample, target=None)
    sample = _one(bench, url, "lease", processes=4, amount=_AT_ONCE, server=server)
    yield from _lease_figures(f"{name}, 4 processes, {_AT_ONCE} at once", sample, target=None)
    sample = _one(bench, url, "beat", processes=4, amount=_BEATING, server=server)
    name = f"Postgres, a beat of {_BEATING} leases"
    yield Figure(ROW, f"{name}: CPU of Postgres", sample["server_us"], "us", samples=[sample])
    yield Figure(ROW, f"{name}: log written", sample["written_bytes"], "B")
    yield Figure(ROW, f"{name}: 4 processes", sample["per_s"], "/s")
    for others in _OTHER_WORKERS:
        _add_other_grants(server, url, others)
        sample = _one(bench, url, "grant", processes=4, amount=others, server=server)
        name = f"Postgres, a window that {others:,} share"
        yield Figure(ROW, f"{name}: claims", sample["per_s"], "/s", samples=[sample])
        yield Figure(ROW, f"{name}: CPU of Postgres", sample["server_us"], "us")


def _lease_figures(name: str, sample: dict[str, Any], *, target: float | None) -> Iterator[Figure]:
    note = f"p50 {sample['p50_ms']:.1f} ms, p99 {sample['p99_ms']:.1f} ms a turn"
    yield Figure(
        ROW, f"{name}: leased and completed", sample["per_s"], "/s", target, Better.HIGH, note, [sample]
    )
    yield Figure(ROW, f"{name}: CPU of the worker for one", sample["client_us"], "us")
    if sample["server_us"]:
        yield Figure(ROW, f"{name}: CPU of Postgres for one", sample["server_us"], "us")
        yield Figure(ROW, f"{name}: log written for one", sample["written_bytes"], "B")


def _one(
    bench: Bench, url: str, what: str, *, processes: int, amount: int, server: Postgres | None = None
) -> dict[str, Any]:
    machine.wait_for_quiet()
    return run_workers(
        url,
        what,
        processes=processes,
        seconds=bench.sizes.hammered_s,
        amount=amount,
        postgres=server,
        source=bench.source,
    )


def _add_other_grants(server: Postgres, url: str, others: int) -> None:
    """Adds grants of `others` workers that share the limit and last longer than the measurement."""
    server.of(
        url,
        f"INSERT INTO upstream VALUES ('{UPSTREAM}') ON CONFLICT DO NOTHING; DELETE FROM upstream_grant;"
        " INSERT INTO upstream_grant (upstream, worker_id, slots, wanted, expires_at)"
        f" SELECT '{UPSTREAM}', 'other-' || n, {CONCURRENCY_LIMIT // (others + 4)}, 1000,"
        f" extract(epoch FROM now()) + 100000 FROM generate_series(1, {others}) n",
    )
