"""How values are spread: quantiles and a histogram of a few bars with even bounds. Pure."""

import math
from collections.abc import Sequence
from typing import Any, Final

_BARS: Final = 12
_FEWEST_BARS: Final = 7
_WIDE: Final = 20.0
"""A spread of this factor between the middle and the largest values gets bars that double in width."""


def distribution(values: Sequence[float]) -> dict[str, Any] | None:
    """The document of a distribution; None without a value.

    Each bar counts the values from `from` up to, but not including, `to`; together the bars count all.
    """
    if not values:
        return None
    ordered = sorted(values)
    bounds = _bounds(ordered)
    counts = [0] * (len(bounds) - 1)
    bar = 0
    for value in ordered:
        while bar < len(counts) - 1 and value >= bounds[bar + 1]:
            bar += 1
        counts[bar] += 1
    return {
        "count": len(ordered),
        "mean": _rounded(math.fsum(ordered) / len(ordered)),
        "least": _rounded(ordered[0]),
        "p50": _rounded(quantile(ordered, 0.5)),
        "p90": _rounded(quantile(ordered, 0.9)),
        "p99": _rounded(quantile(ordered, 0.99)),
        "most": _rounded(ordered[-1]),
        "bars": [
            {"from": _rounded(low), "to": _rounded(high), "count": count}
            for low, high, count in zip(bounds, bounds[1:], counts, strict=False)
        ],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _bounds(ordered: Sequence[float]) -> list[float]:
    least, most = ordered[0], ordered[-1]
    middle = quantile(ordered, 0.5)
    if least >= 0 and middle > 0 and most / middle > _WIDE:
        return _doubling_bounds(most)
    step = _even(max((most - least) / _BARS, 1 if isinstance(most, int) else most / 1_000 or 1))
    low = math.floor(least / step)
    count = math.floor(most / step - low) + 1
    if (missing := _FEWEST_BARS - count) > 0:  # empty bars on both sides of a few values
        low, count = (low - missing // 2 if least < 0 else max(0, low - missing // 2)), _FEWEST_BARS
    return [step * number for number in range(low, low + count + 1)]


def _doubling_bounds(most: float) -> list[float]:
    top = 2 ** math.ceil(math.log2(most * 1.0001))
    return [0.0, *(top / 2**number for number in range(_BARS - 1, -1, -1))]


def _even(step: float) -> float:
    """The next number of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    factors = (1, 2, 2.5, 5, 10) if power < 1 or step / power > 2.5 else (1, 2, 5, 10)
    return next((power * factor for factor in factors if power * factor >= step * 0.9999), power * 10)


def _rounded(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")
