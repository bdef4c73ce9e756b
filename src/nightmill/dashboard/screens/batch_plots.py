"""Plots of a batch over time, of the samples that are stored of it. Pure.

A sample has sums since the start of the batch; a plot has what was added each second between two samples.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

_Sample = Mapping[str, Any]

_FEWEST: Final = 3
"""Points of a plot; a batch that took a few seconds has fewer."""
_MOST: Final = 240


def plots_of(batch: Mapping[str, Any], samples: Sequence[_Sample], present: _Sample) -> list[dict[str, Any]]:
    """The plots of a batch; none while there are too few samples.

    Args:
        batch: the published object of the API.
        present: the sums now, or at the end of a batch that has ended.
    """
    points = _points(batch, samples, present)
    if len(points) < _FEWEST:
        return []
    times = [round(point["at"]) for point in points[1:]]

    def per_s(name: str) -> list[float]:
        return _per_s(points, lambda point: point[name])

    plots = [
        _plot("throughput", "Lines a second", times, [_line("ok", "--ok", per_s("completed"))]),
        _plot(
            "tokens", "Output tokens a second", times, [_line("tokens", "--flight", per_s("output_tokens"))]
        ),
        _plot(
            "in-flight",
            "Lines in flight",
            times,
            [_line("in flight", "--flight", [point["in_flight"] for point in points[1:]])],
        ),
    ]
    if any(point["failed"] for point in points):
        plots[0]["series"].append(_line("failed", "--failed", per_s("failed")))
    return [plot for plot in plots if any(any(line["values"]) for line in plot["series"])]


def attempt_s(samples: Sequence[_Sample]) -> float | None:
    """How long a line was in flight on average: the mean number in flight over the mean rate.

    None where too little was seen.
    """
    if len(samples) < _FEWEST:
        return None
    first, last = samples[0], samples[-1]
    done = last["completed"] + last["failed"] - first["completed"] - first["failed"]
    seen_s = last["at"] - first["at"]
    pairs = pairwise(samples)
    # The time between samples differs, so each counts for the time since the one before.
    line_seconds = sum((b["at"] - a["at"]) * (a["in_flight"] + b["in_flight"]) / 2 for a, b in pairs)
    return line_seconds / done if done > 0 and seen_s > 0 and line_seconds > 0 else None


def _points(
    batch: Mapping[str, Any], samples: Sequence[_Sample], present: _Sample
) -> list[Mapping[str, Any]]:
    points = [sample for sample in samples if sample["at"] < present["at"]]
    started_at = batch.get("in_progress_at")
    if started_at is not None and points and points[0]["at"] > started_at:
        zero = {"completed": 0, "failed": 0, "input_tokens": 0, "output_tokens": 0, "in_flight": 0}
        points.insert(0, {"at": started_at, **zero})
    if points and present["at"] - points[-1]["at"] >= 1:
        points.append(present)
    step = max(1, -(-len(points) // _MOST))
    return points[::-1][::step][::-1]


def _per_s(points: Sequence[_Sample], value: Callable[[_Sample], float]) -> list[float]:
    return [
        round(max(0.0, value(b) - value(a)) / max(1.0, b["at"] - a["at"]), 2) for a, b in pairwise(points)
    ]


def _line(label: str, colour: str, values: Sequence[float]) -> dict[str, Any]:
    return {"label": label, "colour": colour, "values": list(values)}


def _plot(name: str, label: str, times: Sequence[int], series: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "label": label, "times": list(times), "series": series}
