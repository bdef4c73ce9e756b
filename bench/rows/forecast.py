"""How often the range of a forecast held: forecasts replayed on recorded runs.

The runs are those of the real worker in virtual time (`tests/simulation/forecast_runs.py`). The errors in
`core/forecast.py` were fitted on the runs with the seeds `_FITTED`; the figures are of others. The row also
prints what the fit gives now, so that a change of the method can take it over.
"""

import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from bench import inputs, stubs
from bench.figures import FULL, Bench, Figure
from bench.server import Server, serving
from tests.simulation.forecast_runs import EDGES, Replayed, fitted, record, replay

ROW = "forecast"
_FITTED = range(1_000, 1_120)
_TESTED = range(20_000, 20_150)
_QUICKLY_TESTED = range(20_000, 20_020)
_REAL = ((0.5, 0.6, 8, (500,)), (1.5, 0.9, 16, (400, 250)), (0.8, 0.3, 4, (150, 200, 100)))
"""Mean and spread of an answer's time, attempts in flight, and lines of the batches of a real run."""
_ASKED_EVERY_S = 2.0


def measure(bench: Bench) -> list[Figure]:
    is_quick = bench.sizes.rounds < FULL.rounds
    if not is_quick:
        _print_fit(_replayed(_FITTED))
    found = _replayed(_QUICKLY_TESTED if is_quick else _TESTED)
    figures: list[Figure] = []
    for name, part in (
        ("alone", [one for one in found if not one.is_shared]),
        ("beside other batches", [one for one in found if one.is_shared]),
    ):
        figures.append(_held(name, part))
        for low, high in zip((0.0, *EDGES), EDGES, strict=False):
            of_progress = [one for one in part if low < one.found.progress <= high]
            if of_progress:
                figures.append(_held(f"{name}, {low:.0%} to {high:.0%} answered", of_progress))
    return [_held("all", found), *figures, *([] if is_quick else [_real(bench)])]


def _real(bench: Bench) -> Figure:
    """Forecasts that a real server made of real batches, compared with the end of each."""
    runs = [list(_real_run(bench, *run)) for run in _REAL]
    held = [is_held for run in runs for is_held in run]
    parts = ", ".join(
        f"{100 * statistics.mean(run):.0f}% of {len(sizes)} at once"
        for run, (*_, sizes) in zip(runs, _REAL, strict=True)
        if run
    )
    note = f"{len(held):,} forecasts of {sum(len(sizes) for *_, sizes in _REAL)} batches: {parts}"
    return Figure(ROW, "80% range held: a real server", 100 * statistics.mean(held), "%", note=note)


def _real_run(
    bench: Bench, mean_s: float, tail: float, concurrency: int, sizes: Sequence[int]
) -> Iterator[bool]:
    with (
        stubs.slow(mean_s=mean_s, tail=tail) as stub,
        serving(
            bench.folder / "data",
            upstream=stub.url,
            concurrency=concurrency,
            source=bench.source,
            pinned=False,
        ) as server,
    ):
        ids = [server.create(server.upload(inputs.input_file(bench.folder, lines))) for lines in sizes]
        asked: dict[str, list[tuple[int, int]]] = {batch_id: [] for batch_id in ids}
        ended: dict[str, float] = {}
        next_at = time.time()
        while len(ended) < len(ids):
            is_due = time.time() >= next_at
            next_at += _ASKED_EVERY_S if is_due else 0.0
            for batch_id in set(ids) - set(ended):
                if server.batch(batch_id)["status"] not in ("validating", "in_progress"):
                    ended[batch_id] = time.time()
                elif is_due:
                    asked[batch_id] += _range(server, batch_id)
            time.sleep(0.05)
    for batch_id, ranges in asked.items():
        yield from (earliest <= ended[batch_id] <= latest + 1 for earliest, latest in ranges)


def _range(server: Server, batch_id: str) -> list[tuple[int, int]]:
    found = server.call("GET", f"/nightmill/v1/batches/{batch_id}")["forecast"]
    return [] if not found or found["ends_at"] is None else [(found["earliest_at"], found["latest_at"])]


def _held(name: str, replayed: Sequence[Replayed]) -> Figure:
    ratio = statistics.median(one.range_ratio for one in replayed)
    return Figure(
        ROW,
        f"80% range held: {name}",
        100 * statistics.mean(one.is_in_range for one in replayed),
        "%",
        note=f"{len(replayed):,} forecasts; the latest end is {ratio:.1f} times the earliest (median)",
    )


def _replayed(seeds: Iterable[int]) -> list[Replayed]:
    return [one for seed in seeds for one in replay(record(seed))]


def _print_fit(replayed: Sequence[Replayed]) -> None:
    for name, is_shared in (("_ERRORS_ALONE", False), ("_ERRORS_SHARED", True)):
        errors = fitted([one for one in replayed if one.is_shared is is_shared])
        print(name, *(f"    {tuple(one)}" for one in errors), sep="\n", file=sys.stderr)
