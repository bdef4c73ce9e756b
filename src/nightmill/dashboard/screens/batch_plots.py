"""Plots of a batch over time, of the samples that are stored of it. Pure.

A sample has sums since the start of the batch; a plot has what was added each second between two samples.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

_Sample = Mapping[str, Any]

_FEWEST: Final = 3
"""Points of a plot; a batch that took a few seconds has fewer."""
_MOST: Final = 240
_SHORTEST_GAP_S: Final = 20.0


def plots_of(batch: Mapping[str, Any], samples: Sequence[_Sample], present: _Sample) -> list[dict[str, Any]]:
    """The plots of a batch; none while there are too few samples.

    Args:
        batch: the published object of the API.
        present: the sums now, or at the end of a batch that has ended.
    """
    points = _points(batch, samples, present)
    if len(points) < _FEWEST:
        return []
    steps = _steps(points)
    times = [step.at for step in steps]

    def per_s(name: str) -> list[float | None]:
        return [step.per_s(name) for step in steps]

    lines = [_line("ok", "--ok", per_s("completed"))]
    if any(point["failed"] for point in points):
        lines.append(_line("failed", "--failed", per_s("failed")))
    plots = [
        _plot("throughput", "Lines a second", times, lines),
        _plot(
            "tokens",
            "Output tokens a second",
            times,
            [_line("tokens", "--flight", per_s("output_tokens"))],
        ),
        _plot(
            "in-flight",
            "Lines in flight",
            times,
            [_line("in flight", "--flight", [step.in_flight for step in steps])],
        ),
    ]
    return [plot for plot in plots if plot["most"] > 0]


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


class _Step(NamedTuple):
    """A point of a plot: what was added between two samples, at the time of the second.

    `in_flight` is None within a gap, in which nothing was sampled.
    """

    at: int
    before: _Sample
    after: _Sample
    in_flight: int | None

    def per_s(self, name: str) -> float:
        added = max(0.0, self.after[name] - self.before[name])
        return round(added / max(1.0, self.after["at"] - self.before["at"]), 2)


def _steps(points: Sequence[_Sample]) -> list[_Step]:
    """A point for each sample but the first, and one more at the beginning of a gap.

    A batch has no samples while it is paused. Without the point the line would slope through the gap.
    """
    between_s = sorted(after["at"] - before["at"] for before, after in pairwise(points))
    longest_s = max(_SHORTEST_GAP_S, 3 * between_s[len(between_s) // 2])
    steps: list[_Step] = []
    for before, after in pairwise(points):
        if after["at"] - before["at"] > longest_s:
            steps.append(_Step(round(before["at"]) + 1, before, after, None))
        steps.append(_Step(round(after["at"]), before, after, after["in_flight"]))
    return steps


def _line(label: str, colour: str, values: Sequence[float | None]) -> dict[str, Any]:
    return {"label": label, "colour": colour, "values": list(values)}


def _plot(name: str, label: str, times: Sequence[int], series: list[dict[str, Any]]) -> dict[str, Any]:
    most = max(value or 0 for line in series for value in line["values"])
    return {"name": name, "label": label, "times": list(times), "most": most, "series": series}
