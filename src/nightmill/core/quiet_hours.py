"""Quiet hours: the hours of the week in which others hardly use an upstream, so that `share` does not apply.

No I/O after `QuietHours.parse`.

They are written as ranges, for example `22:00-06:00 Europe/Berlin` or `Mon-Fri 20:00-06:00 Europe/Berlin,
Sat-Sun 00:00-24:00 Europe/Berlin`. A time is in a range when a clock on a wall of that zone shows a time in
it: when the clocks are set back, the repeated hour is in the range twice, and a skipped hour is in no range.
The weekdays are those on which a range begins: `Fri 20:00-06:00` ends on Saturday.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

_EXAMPLE = "Mon-Fri 22:00-06:00 Europe/Berlin"
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_RANGE = re.compile(
    r"(?:(?P<days>[A-Za-z]\S*)\s+)?(?P<start>\d{1,2}:\d{2})\s*-\s*(?P<end>\d{1,2}:\d{2})(?:\s+(?P<zone>\S+))?"
)
_DAY_MINUTES = 24 * 60
_DAY = timedelta(days=1)
_LONGEST_STATE_DAYS = 15
"""A state that lasts longer does not end: every range begins each week, or after two weeks if the clocks skip
it."""


@dataclass(frozen=True, slots=True)
class _Range:
    days: frozenset[int]
    start_minute: int
    end_minute: int
    zone: ZoneInfo

    def contains(self, at: datetime) -> bool:
        local = at.astimezone(self.zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start_minute < self.end_minute:
            return day in self.days and self.start_minute <= minute < self.end_minute
        if minute >= self.start_minute:
            return day in self.days
        return minute < self.end_minute and (day - 1) % 7 in self.days

    def edges(self, begin: datetime) -> Iterator[datetime]:
        """Every time within a day of `begin` at which `contains` may change, and a few more."""
        yield from _clock_changes(begin, self.zone)
        local_date = begin.astimezone(self.zone).date()
        for date in (local_date, local_date + _DAY, local_date + 2 * _DAY):  # a day may have 23 hours
            for minute in (self.start_minute, self.end_minute % _DAY_MINUTES):
                for fold in (0, 1):
                    wall = time(minute // 60, minute % 60, tzinfo=self.zone, fold=fold)
                    yield datetime.combine(date, wall).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Ranges of a week in which the share of an upstream does not apply. Made by `parse`."""

    _ranges: tuple[_Range, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ranges that are separated by commas. Each names its time zone.

        Raises:
            ValueError: the text is wrong. The message names what is wrong, and an example of a right text.
        """
        return cls(tuple(_parse_range(part.strip()) for part in text.split(",")))

    def contains(self, unix_s: float) -> bool:
        """Whether a time is in the quiet hours."""
        return self._contains(_utc(unix_s))

    def next_change(self, unix_s: float) -> float:
        """The first time after `unix_s` at which the hours begin or end, `math.inf` if there is none."""
        begin = _utc(unix_s)
        state = self._contains(begin)
        for _ in range(_LONGEST_STATE_DAYS):
            end = begin + _DAY
            for edge in sorted({edge for one in self._ranges for edge in one.edges(begin)}):
                if begin < edge <= end and self._contains(edge) != state:
                    return edge.timestamp()
            begin = end
        return math.inf

    def _contains(self, at: datetime) -> bool:
        return any(one.contains(at) for one in self._ranges)


def _utc(unix_s: float) -> datetime:
    # Rounded down, as a datetime would round the last microsecond of a range up to its end.
    return datetime.fromtimestamp(math.floor(unix_s), UTC)


def _clock_changes(begin: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """The time within a day of `begin` from which the clocks of a zone differ from UTC by another amount."""
    low, high = begin, begin + _DAY
    before = low.astimezone(zone).utcoffset()
    if high.astimezone(zone).utcoffset() == before:
        return
    while (seconds := (high - low) // timedelta(seconds=1)) > 1:
        middle = low + timedelta(seconds=seconds // 2)
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    yield high


def _parse_range(text: str) -> _Range:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise _error(text, "is not a range of hours with a time zone")
    days, start, end, zone = found.groups()
    if zone is None:
        raise _error(text, "names no time zone")
    start_minute, end_minute = _minute(text, start), _minute(text, end)
    if start_minute == _DAY_MINUTES:
        raise _error(text, "begins at 24:00, which is only an end; write 00:00")
    if start_minute == end_minute:
        raise _error(text, "begins and ends at the same time; write 00:00-24:00 for a whole day")
    return _Range(_days(text, days or "Mon-Sun"), start_minute, end_minute, _zone(text, zone))


def _minute(text: str, written: str) -> int:
    hour, minute = map(int, written.split(":"))
    if minute > 59 or hour * 60 + minute > _DAY_MINUTES:
        raise _error(text, f"has the time {written}; times are 00:00 to 24:00")
    return hour * 60 + minute


def _days(text: str, written: str) -> frozenset[int]:
    names = [name.capitalize() for name in written.split("-")]
    if len(names) > 2 or any(name not in _WEEKDAYS for name in names):
        raise _error(text, f"has the days {written!r}; days are {', '.join(_WEEKDAYS)}, or two with a hyphen")
    first, last = _WEEKDAYS.index(names[0]), _WEEKDAYS.index(names[-1])
    return frozenset((first + offset) % 7 for offset in range((last - first) % 7 + 1))


def _zone(text: str, name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not in the database, not a name, a folder of the database
        raise _error(text, f"has the unknown time zone {name!r}") from None


def _error(text: str, wrong: str) -> ValueError:
    return ValueError(f'The range {text!r} of the quiet hours {wrong}. A right example: "{_EXAMPLE}".')
