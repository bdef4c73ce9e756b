"""The address of the list of batches: what it asks the API for, and the addresses one click away."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from nightmill.dashboard.list_address import ListAddress, api_query, night_before
from nightmill.errors import RequestError

NOW = datetime(2026, 11, 29, 22, 52, 30, tzinfo=UTC).timestamp()


def address(*pairs: tuple[str, str], now: float = NOW) -> ListAddress:
    return ListAddress.of(pairs, now=now)


def test_parameters_that_the_page_does_not_know_are_dropped() -> None:
    assert address(("status", "failed"), ("colour", "red"), ("model", "  ")).pairs == (("status", "failed"),)


def test_the_last_value_of_a_name_that_is_not_repeatable_counts() -> None:
    assert address(("model", "a"), ("model", "b")).all("model") == ["b"]
    assert address(("status", "failed"), ("status", "expired")).all("status") == ["failed", "expired"]


def test_unfinished_stands_for_the_four_statuses_before_an_end() -> None:
    found = api_query(address(("status", "unfinished")).api_pairs())
    assert found == {"status": ["validating", "in_progress", "finalizing", "cancelling"]}


def test_a_paused_batch_is_not_shown_as_in_progress() -> None:
    assert address(("status", "in_progress")).api_pairs() == [("status", "in_progress"), ("paused", "false")]
    assert address(("status", "paused")).api_pairs() == [("paused", "true")]


def test_a_range_ends_now_and_moves_in_steps_of_a_minute() -> None:
    asked = {address(("range", "24h"), now=NOW + later_s).api_pairs()[0] for later_s in (0, 10, 29)}
    assert asked == {("created_after", str(int(NOW) - 30 - 86_400))}


@pytest.mark.parametrize(("hour", "day"), [(3, 29), (7, 29), (9, 29), (23, 29)])
def test_last_night_ends_at_eight_of_today(hour: int, day: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin, end = night_before(datetime(2026, 11, day, hour, tzinfo=zone).timestamp(), zone)
    assert datetime.fromtimestamp(begin, zone) == datetime(2026, 11, 28, 16, tzinfo=zone)
    assert datetime.fromtimestamp(end, zone) == datetime(2026, 11, 29, 8, tzinfo=zone)


def test_times_are_read_in_the_zone_of_the_address() -> None:
    pairs = [("from", "2026-11-28T22:00"), ("to", "2026-11-29T06:00"), ("tz", "Europe/Berlin")]
    assert address(*pairs).created() == (
        int(datetime(2026, 11, 28, 21, tzinfo=UTC).timestamp()),
        int(datetime(2026, 11, 29, 5, tzinfo=UTC).timestamp()),
    )


def test_an_unknown_zone_is_read_as_utc() -> None:
    for zone in ("Mars/Olympus", "../../etc/passwd", "\0"):
        assert address(("from", "2026-11-28T22:00"), ("tz", zone)).created()[0] == int(
            datetime(2026, 11, 28, 22, tzinfo=UTC).timestamp()
        )


@pytest.mark.parametrize(
    "pair",
    [
        ("range", "yesterday"),
        ("from", "noon"),
        ("to", "2026-13-01"),
        ("rows", "0"),
        ("rows", "9999"),
        ("rows", "²"),
    ],
)
def test_a_time_that_cannot_be_read_is_refused_and_not_left_out(pair: tuple[str, str]) -> None:
    with pytest.raises(RequestError) as raised:
        address(pair)
    assert raised.value.param == pair[0]


def test_a_filter_leaves_the_page_and_keeps_the_rest() -> None:
    here = address(("status", "failed"), ("model", "a&b"), ("after", "batch_1"), ("back", "batch_0"))
    assert here.having("model", "c") == "./?status=failed&model=c"
    assert here.lacking("status") == "./?model=a%26b"
    assert here.adding("metadata", "team=x") == "./?status=failed&model=a%26b&metadata=team%3Dx"
    assert here.first_page == "./?status=failed&model=a%26b"


def test_one_of_several_values_can_be_taken_away() -> None:
    here = address(("metadata", "a=1"), ("metadata", "b=2"))
    assert here.lacking("metadata", "a=1") == "./?metadata=b%3D2"


def test_a_range_takes_the_place_of_times() -> None:
    here = address(("from", "2026-11-28T22:00"), ("to", "2026-11-29T06:00"))
    assert here.having("range", "night") == "./?range=night"


def test_pages_lead_on_and_back() -> None:
    first = address(("model", "m"))
    assert first.page_before is None
    second = first.next_page("batch_2")
    assert second == "./?model=m&after=batch_2"
    third = address(("model", "m"), ("after", "batch_2")).next_page("batch_3")
    assert third == "./?model=m&back=batch_2&after=batch_3"
    assert (first.page_number, address(("after", "batch_2")).page_number) == (1, 2)
    at_third = address(("model", "m"), ("back", "batch_2"), ("after", "batch_3"))
    assert at_third.page_before == second
    assert address(("model", "m"), ("after", "batch_2")).page_before == "./?model=m"


def test_the_number_of_rows_belongs_to_the_view() -> None:
    here = address(("rows", "25"), ("model", "m"))
    assert here.rows == 25
    assert here.having("model", "n") == "./?rows=25&model=n"
    assert here.filters == (("model", "m"),)


def test_lines_are_searched_in_the_batches_of_the_view() -> None:
    here = address(("q", "ticket-1"), ("model", "m"), ("after", "batch_1"))
    assert here.api_pairs(without=("q",)) == [("model", "m")]
    assert here.find_line() == "ui/find?q=ticket-1&model=m"
    assert here.find_line("batch_2@3:4") == "ui/find?q=ticket-1&model=m&after=batch_2%403%3A4"


def test_a_form_repeats_the_filters_that_it_does_not_set() -> None:
    here = address(("q", "x"), ("model", "m"), ("after", "batch_1"))
    assert here.hidden("q") == [{"name": "model", "value": "m"}]
