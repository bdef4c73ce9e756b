"""Filters of the templates: numbers, times, sizes and ids as people read them.

A time is shown relative to now, with the exact time as the title; the page's script keeps it current.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from time import time
from typing import Any, Final

import msgspec
from markupsafe import Markup

from nightmill.core.words import clock, cut, duration, short_id

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def number(value: float | None) -> str:
    """`12,431`; `0.25` and `0.0042` for fractions; an en dash without a value."""
    if value is None:
        return "–"
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    if abs(value) >= 10:
        return f"{value:,.1f}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.4f}"


def short_number(value: float | None) -> str:
    """`950`, `12.4k`, `3.1M`, `1.2G`: for columns in which long numbers do not fit."""
    if value is None:
        return "–"
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f}{unit}"
    return number(value)


def size(size_bytes: int | None) -> str:
    """`1.5 MiB`."""
    if size_bytes is None:
        return "–"
    value = float(size_bytes)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} {_UNITS[-1]}"


def ago(unix_s: float | None) -> Markup:
    """A `<time>` element: `5 min ago`, or `in 3 h` for a time to come."""
    return _time_element(unix_s, since="{} ago", mark="data-ago")


def coming(unix_s: float | None) -> Markup:
    """The same of a forecast: `in 3 h`, and `any moment` when its time has passed."""
    return _time_element(unix_s, since="any moment", mark="data-coming")


def _time_element(unix_s: float | None, *, since: str, mark: str) -> Markup:
    if unix_s is None:
        return Markup("–")
    moment = datetime.fromtimestamp(unix_s, UTC)
    apart_s = time() - unix_s
    words = since.format(duration(apart_s)) if apart_s >= 0 else f"in {duration(-apart_s)}"
    return Markup('<time datetime="{}" title="{}" {}>{}</time>').format(
        moment.isoformat(timespec="seconds"), exact(unix_s), mark, words
    )


def exact(unix_s: float | None) -> str:
    """`2026-11-29 22:52:00 UTC`."""
    return "–" if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def percent(share: float | None) -> str:
    """Of a share from 0 to 1; never 100 % before the end."""
    if share is None:
        return "–"
    return (
        "100%" if share >= 1 else f"{min(share * 100, 99.9):.1f}%" if share > 0.99 else f"{share * 100:.0f}%"
    )


def duration_text(seconds: float | None) -> str:
    """`850 ms`, `12 s`, `5 min`."""
    if seconds is None:
        return "–"
    return f"{seconds * 1_000:.0f} ms" if seconds < 1 else duration(seconds)


def pretty_json(value: Any) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "number": number,
    "short_number": short_number,
    "size": size,
    "ago": ago,
    "coming": coming,
    "exact": exact,
    "percent": percent,
    "duration": duration_text,
    "clock": clock,
    "short_id": short_id,
    "cut": cut,
    "pretty_json": pretty_json,
}
