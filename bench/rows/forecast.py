"""How often the range of a forecast held: forecasts replayed on recorded runs.

The runs are those of the real worker in virtual time (`tests/simulation/forecast_runs.py`). The errors in
`core/forecast.py` were fitted on the runs with the seeds `_FITTED`; the figures are of others. The row also
prints what the fit gives now, so that a change of the method can take it over.
"""

import statistics
import sys
from collections.abc import Iterable, Sequence

from bench.figures import FULL, Bench, Figure
from tests.simulation.forecast_runs import EDGES, Replayed, fitted, record, replay

ROW = "forecast"
_FITTED = range(1_000, 1_120)
_TESTED = range(5_000, 5_100)
_QUICKLY_TESTED = range(5_000, 5_020)


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
    return [_held("all", found), *figures]


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
