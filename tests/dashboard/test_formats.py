"""How numbers and times are shown on the pages."""

import time

import pytest

from nightmill.dashboard.formats import ago, coming, number, percent, short_number


@pytest.mark.parametrize(
    ("apart_s", "since", "forecast"),
    [(-7_250, "2 h ago", "any moment"), (-0.5, "0 s ago", "any moment"), (7_250, "in 2 h", "in 2 h")],
)
def test_a_time_is_relative_and_a_forecast_is_never_in_the_past(
    apart_s: float, since: str, forecast: str
) -> None:
    moment = time.time() + apart_s
    assert f">{since}</time>" in ago(moment)
    assert f">{forecast}</time>" in coming(moment)


def test_without_a_value_there_is_a_dash() -> None:
    assert {ago(None), coming(None), number(None), percent(None), short_number(None)} == {"–"}


@pytest.mark.parametrize(
    ("value", "text"), [(12_431, "12,431"), (3.0, "3"), (18.34, "18.3"), (0.25, "0.25"), (0.00421, "0.0042")]
)
def test_a_number_has_as_many_digits_as_are_read(value: float, text: str) -> None:
    assert number(value) == text


def test_a_share_is_whole_only_at_the_end() -> None:
    assert [percent(share) for share in (0.0, 0.25, 0.9999, 1.0)] == ["0%", "25%", "99.9%", "100%"]
