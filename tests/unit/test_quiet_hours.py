"""Quiet hours: how they are written, and when they begin and end."""

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.quiet_hours import QuietHours

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def unix_s(text: str, zone: ZoneInfo = BERLIN, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("at", "is_quiet"),
    [
        ("2026-11-25 21:59:59.999999", False),
        ("2026-11-25 22:00", True),
        ("2026-11-26 00:00", True),
        ("2026-11-26 05:59:59.999999", True),
        ("2026-11-26 06:00", False),
    ],
)
def test_hours_across_midnight_include_their_begin_and_not_their_end(at: str, is_quiet: bool):
    assert QuietHours.parse("22:00-06:00 Europe/Berlin").contains(unix_s(at)) is is_quiet


def test_the_last_moment_before_the_hours_is_not_rounded_into_them():
    begin = unix_s("2026-11-25 22:00")
    hours = QuietHours.parse("22:00-06:00 Europe/Berlin")
    assert not hours.contains(math.nextafter(begin, 0))
    assert hours.next_change(math.nextafter(begin, 0)) == begin


@pytest.mark.parametrize(
    ("at", "is_quiet"),
    [
        ("2026-11-23 05:00", False),  # Monday, in the night that began on Sunday
        ("2026-11-23 20:00", True),
        ("2026-11-28 05:00", True),  # Saturday, in the night that began on Friday
        ("2026-11-28 07:00", False),
        ("2026-11-28 20:00", False),
        ("2026-11-29 05:00", False),
    ],
)
def test_weekdays_are_those_on_which_the_hours_begin(at: str, is_quiet: bool):
    assert QuietHours.parse("Mon-Fri 20:00-06:00 Europe/Berlin").contains(unix_s(at)) is is_quiet


@pytest.mark.parametrize(
    ("days", "quiet"),
    [("Wed", {"Wed"}), ("fri-MON", {"Fri", "Sat", "Sun", "Mon"}), ("Mon-Sun", set(WEEKDAYS))],
)
def test_days_may_be_one_or_a_run_of_the_week(days: str, quiet: set[str]):
    hours = QuietHours.parse(f"{days} 9:30-10:00 Europe/Berlin")
    noon = datetime(2026, 11, 23, 9, 45, tzinfo=BERLIN)
    found = {
        name for day, name in enumerate(WEEKDAYS) if hours.contains((noon + timedelta(days=day)).timestamp())
    }
    assert found == quiet


def test_several_ranges_count_together_and_their_common_border_is_no_change():
    hours = QuietHours.parse("Mon-Fri 20:00-06:00 Europe/Berlin, Sat-Sun 00:00-24:00 Europe/Berlin")
    assert hours.next_change(unix_s("2026-11-27 12:00")) == unix_s("2026-11-27 20:00")
    assert hours.next_change(unix_s("2026-11-27 20:00")) == unix_s("2026-11-30 00:00")


def test_each_range_has_its_own_zone():
    hours = QuietHours.parse("08:00-09:00 Europe/Berlin,08:00-09:00 America/New_York")
    at = unix_s("2026-11-25 08:00")
    changes = [at := hours.next_change(at) for _ in range(3)]
    assert changes == [
        unix_s("2026-11-25 09:00"),
        unix_s("2026-11-25 08:00", NEW_YORK),
        unix_s("2026-11-25 09:00", NEW_YORK),
    ]


@pytest.mark.parametrize(
    "text", ["00:00-24:00 Europe/Berlin", "00:00-12:00 Europe/Berlin, 12:00-00:00 Europe/Berlin"]
)
def test_hours_without_end_never_change(text: str):
    hours = QuietHours.parse(text)
    assert hours.contains(unix_s("2026-11-25 08:00"))
    assert hours.next_change(unix_s("2026-11-25 08:00")) == math.inf


def test_a_night_in_which_the_clocks_go_forward_is_an_hour_shorter():
    hours = QuietHours.parse("22:00-06:00 Europe/Berlin")
    begin = unix_s("2026-03-28 22:00")
    assert hours.next_change(begin) - begin == 7 * 3600


def test_a_night_in_which_the_clocks_go_back_is_an_hour_longer():
    hours = QuietHours.parse("22:00-06:00 America/New_York")
    begin = unix_s("2026-10-31 22:00", NEW_YORK)
    assert hours.next_change(begin) - begin == 9 * 3600


def test_a_change_a_whole_day_ahead_is_found():
    hours = QuietHours.parse("Wed 08:00-09:00 Europe/Berlin")
    assert hours.next_change(unix_s("2026-11-24 08:00")) == unix_s("2026-11-25 08:00")


def test_the_midnight_after_a_day_of_23_hours_is_found():
    hours = QuietHours.parse("Mon 00:00-12:00 Europe/Berlin")
    assert hours.next_change(unix_s("2026-03-28 23:30")) == unix_s("2026-03-30 00:00")


def test_hours_that_begin_in_the_skipped_hour_begin_at_its_end():
    hours = QuietHours.parse("02:30-04:00 Europe/Berlin")
    assert hours.next_change(unix_s("2026-03-29 00:00")) == unix_s("2026-03-29 03:00")


def test_hours_within_the_skipped_hour_are_left_out_once():
    hours = QuietHours.parse("Sun 02:00-02:30 America/New_York")
    assert hours.next_change(unix_s("2026-03-02 00:00", NEW_YORK)) == unix_s("2026-03-15 02:00", NEW_YORK)


def test_hours_in_the_repeated_hour_come_twice():
    hours = QuietHours.parse("02:00-02:30 Europe/Berlin")
    at = unix_s("2026-10-25 00:00")
    changes = [at := hours.next_change(at) for _ in range(4)]
    begin, end = "2026-10-25 02:00", "2026-10-25 02:30"
    assert changes == [unix_s(begin), unix_s(end), unix_s(begin, fold=1), unix_s(end, fold=1)]


def test_hours_that_end_in_the_repeated_hour_come_back_when_the_clocks_are_set_back():
    hours = QuietHours.parse("23:00-02:30 Europe/Berlin")
    first_end = unix_s("2026-10-25 02:30")
    assert hours.next_change(first_end - 60) == first_end
    assert hours.next_change(first_end) == unix_s("2026-10-25 02:00", fold=1)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is not a range of hours with a time zone"),
        ("22:00-06:00 Europe/Berlin,", "is not a range of hours with a time zone"),
        ("22-06 Europe/Berlin", "is not a range of hours with a time zone"),
        ("Mon Tue 22:00-06:00 Europe/Berlin", "is not a range of hours with a time zone"),
        ("22:00-06:00", "names no time zone"),
        ("22:00-06:00 Mars/Base", "has the unknown time zone 'Mars/Base'"),
        ("22:00-06:00 Europe", "has the unknown time zone 'Europe'"),
        ("22:00-06:00 ../etc", "has the unknown time zone '../etc'"),
        ("22:60-06:00 UTC", "has the time 22:60"),
        ("22:00-24:01 UTC", "has the time 24:01"),
        ("24:00-06:00 UTC", "begins at 24:00, which is only an end; write 00:00"),
        ("06:00-06:00 UTC", "begins and ends at the same time; write 00:00-24:00 for a whole day"),
        ("Mo 22:00-06:00 UTC", "has the days 'Mo'; days are Mon, Tue"),
        ("Mon-Tue-Wed 22:00-06:00 UTC", "has the days 'Mon-Tue-Wed'"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_wrong_and_an_example(text: str, wrong: str):
    with pytest.raises(ValueError, match="The range") as refused:
        QuietHours.parse(text)
    message = str(refused.value)
    assert wrong in message
    assert 'A right example: "Mon-Fri 22:00-06:00 Europe/Berlin".' in message
    QuietHours.parse("Mon-Fri 22:00-06:00 Europe/Berlin")


# The days around both changes of the clocks in both zones, and around the turn of a year.
BEGINS = [
    datetime(2026, 3, 7, 12, tzinfo=UTC),
    datetime(2026, 3, 28, 12, tzinfo=UTC),
    datetime(2026, 10, 24, 12, tzinfo=UTC),
    datetime(2026, 10, 31, 12, tzinfo=UTC),
    datetime(2026, 12, 31, 12, tzinfo=UTC),
]
MINUTES = st.integers(0, 1439) | st.sampled_from([0, 60, 90, 120, 150, 180])
RANGES = st.tuples(
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    MINUTES,
    MINUTES | st.just(1440),
    st.sampled_from([BERLIN, NEW_YORK]),
).filter(lambda one: one[1] != one[2])


def is_on(one: tuple[tuple[int, int], int, int, ZoneInfo], at: datetime) -> bool:
    """Counts the minutes of the wall clock since midnight of the day on which the range would begin."""
    (first, last), start, end, zone = one
    local = at.astimezone(zone)
    length = (end - start) % 1440 or 1440
    for days_ago in (0, 1):
        begin_day = (local.weekday() - days_ago) % 7
        minute = local.hour * 60 + local.minute + 1440 * days_ago
        if (begin_day - first) % 7 <= (last - first) % 7 and start <= minute < start + length:
            return True
    return False


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@settings(max_examples=60)
@given(st.lists(RANGES, min_size=1, max_size=3), st.sampled_from(BEGINS), st.integers(0, 1440))
def test_every_minute_of_two_days_is_as_on_the_wall_clock(
    ranges: list[tuple[tuple[int, int], int, int, ZoneInfo]], begin: datetime, offset: int
):
    text = ", ".join(
        f"{WEEKDAYS[first]}-{WEEKDAYS[last]} {clock(start)}-{clock(end)} {zone.key}"
        for (first, last), start, end, zone in ranges
    )
    hours = QuietHours.parse(text)
    minutes = [begin + timedelta(minutes=offset + minute) for minute in range(2 * 1440)]
    states = [any(is_on(one, at) for one in ranges) for at in minutes]
    assert [hours.contains(at.timestamp()) for at in minutes[::7]] == states[::7]
    expected = [
        at.timestamp()
        for at, before, state in zip(minutes[1:], states, states[1:], strict=False)
        if state != before
    ]
    found: list[float] = []
    change = hours.next_change(minutes[0].timestamp())
    while change <= minutes[-1].timestamp():
        found.append(change)
        change = hours.next_change(change)
    assert found == expected
