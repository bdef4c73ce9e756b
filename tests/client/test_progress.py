"""The progress display: rate, time to go, and the output to a pipe."""

import io
from dataclasses import replace

import pytest

from nightmill.client.progress import Pace, Snapshot, Tracked, away, end, sentence, shown, shown_all, speeds
from nightmill.core.words import moment

HOUR = 3_600.0


def snapshot(done: int, *, status: str = "in_progress", total: int = 1_000, failed: int = 0) -> Snapshot:
    return Snapshot(status=status, total=total, completed=done - failed, failed=failed)


def tracked(of: Snapshot, *, began_at: float = 0.0, rate: float = 0.0) -> Tracked:
    pace = Pace()
    if rate:
        pace.note(of.done - int(10 * rate), now=0.0)
        pace.note(of.done, now=10.0)
    return Tracked(of, began_at, pace)


def test_a_rate_needs_two_snapshots():
    pace = Pace()
    assert pace.per_second is None
    pace.note(0, now=10.0)
    assert (pace.per_second, pace.left_s(100)) == (None, None)
    pace.note(50, now=12.0)
    assert (pace.per_second, pace.left_s(100)) == (25.0, 2.0)


def test_the_rate_ignores_old_snapshots():
    pace = Pace(window_s=10.0)
    for second in range(100):
        pace.note(min(second, 50) * 10, now=float(second))
    assert pace.per_second == 0.0
    assert pace.left_s(1_000) is None


def test_the_text_contains_only_known_values():
    known = tracked(snapshot(500), rate=5.0)
    assert sentence(known, 100.0) == (
        "in_progress: 500 of 1,000 done (500 ok, 0 failed), 1:40 elapsed, 5.0/s, 1:40 to go"
    )
    more = replace(snapshot(500, failed=3), in_flight=64, retrying=2, tokens_per_s=1_234.5)
    assert speeds(tracked(more, rate=200.0), 5.0) == [
        "0:05 elapsed",
        "200/s",
        "1,234 tokens/s",
        "64 in flight",
        "2 retrying",
    ]
    assert sentence(tracked(snapshot(0, status="validating", total=0)), 3.0) == "validating: 0:03 elapsed"


def test_the_rate_that_the_server_measures_counts_until_the_display_has_its_own():
    of = replace(snapshot(500), lines_per_s=7.0)
    assert "7.0/s" in speeds(tracked(of), 1.0)
    assert "5.0/s" in speeds(tracked(of, rate=5.0), 1.0)


def test_the_time_counts_from_the_creation_of_the_batch_to_its_end():
    of = replace(snapshot(1_000, status="completed"), started_at=100.0, ended_at=160.0)
    assert speeds(tracked(of, began_at=150.0), 999.0) == ["1:00 elapsed"]
    assert speeds(tracked(replace(of, tokens=3_480)), 999.0) == ["1:00 elapsed", "3,480 tokens"]


def test_the_text_says_what_is_held():
    waiting = replace(snapshot(0, total=9), in_flight=0, held="model 'm' is held")
    assert sentence(tracked(waiting), 0.0) == (
        "in_progress: 0 of 9 done, 0:00 elapsed, 0 in flight; model 'm' is held"
    )


def test_the_forecast_of_the_server_takes_the_place_of_the_pace():
    known = replace(snapshot(500), why="w", ends_at=60.0, latest_at=90.0, deadline=HOUR)
    ends = end(tracked(known, rate=5.0), 10.0)
    assert ends is not None
    assert ends.text == f"0:50 to go, about {moment(60, 10)}, by {moment(90, 10)} in 9 of 10 cases"
    assert not ends.is_late


@pytest.mark.parametrize("forecast", [{"why": "w", "ends_at": HOUR + 70, "latest_at": 2 * HOUR}, {}])
def test_an_end_behind_the_deadline_is_a_warning(forecast):
    known = replace(snapshot(0, total=36_700), deadline=HOUR, **forecast)
    ends = end(tracked(known, rate=10.0), 0.0)
    assert ends is not None
    assert ends.is_late
    assert ends.text.endswith("1:10 after its deadline")


def test_a_deadline_that_has_passed_is_a_warning():
    ends = end(tracked(replace(snapshot(1), deadline=HOUR)), HOUR + 5)
    assert ends is not None
    assert (ends.text, ends.is_late) == ("its deadline was 0:05 ago", True)


def test_a_server_that_is_away_is_said_with_its_seconds_and_without_what_it_said_before():
    gone = replace(snapshot(500, failed=1), in_flight=3, away_since=100.0)
    assert away(gone, 112.0) == "no answer from the server for 12 s; trying again"
    assert sentence(tracked(gone, rate=5.0), 112.0) == (
        "in_progress: 500 of 1,000 done (499 ok, 1 failed), 1:52 elapsed;"
        " no answer from the server for 12 s; trying again"
    )


def test_a_pipe_gets_a_line_for_each_status_and_at_intervals():
    stream = io.StringIO()
    moments = iter([0.0, 0.1, 1.0, 4.9, 5.2, 5.3, 99.0])
    with shown(stream, now=lambda: next(moments), wall=lambda: 0.0) as show:
        show(snapshot(0, status="validating", total=0))
        for done in (0, 100, 490, 520):
            show(snapshot(done))
        for _ in range(2):
            show(snapshot(1_000, status="completed"))
    lines = stream.getvalue().splitlines()
    assert [line.split(" done")[0] for line in lines] == [
        "validating: 0:00 elapsed",
        "in_progress: 0 of 1,000",
        "in_progress: 520 of 1,000",
        "completed: 1,000 of 1,000",
    ]


def test_a_pipe_gets_a_line_when_the_server_goes_away_and_when_it_is_back():
    stream = io.StringIO()
    with shown(stream, now=lambda: 0.0, wall=lambda: 3.0) as show:
        for since in (None, 1.0, 1.0, None):
            show(replace(snapshot(1), away_since=since))
    assert [line.endswith("for 2 s; trying again") for line in stream.getvalue().splitlines()] == [
        False,
        True,
        False,
    ]


def test_of_several_batches_each_line_in_a_pipe_has_an_id():
    stream = io.StringIO()
    ids = [f"batch_{number}" + "0" * 31 for number in range(2)]
    with shown_all(stream, now=lambda: 0.0, wall=lambda: 0.0) as show:
        for _ in range(2):
            show([replace(snapshot(1), batch_id=batch_id) for batch_id in ids])
    assert [line.split(": ")[0] for line in stream.getvalue().splitlines()] == [
        "00000000 in_progress",
        "10000000 in_progress",
    ]


def test_what_limits_the_batch_is_below_the_line_when_it_changes():
    stream = io.StringIO()
    moments = iter([0.0, 6.0, 12.0])
    with shown(stream, now=lambda: next(moments)) as show:
        for why in ("It waits.", "It waits.", "It runs."):
            show(Snapshot(status="in_progress", total=9, completed=0, failed=0, why=why))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("  ")]
    assert lines == ["  It waits.", "  It runs."]
