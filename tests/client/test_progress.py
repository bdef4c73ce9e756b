"""The progress display: rate, remaining time, and the output to a terminal or a pipe."""

import io

from nightmill.client.progress import Pace, Snapshot, sentence, shown


def snapshot(answered: int, *, status: str = "in_progress", total: int = 1_000, failed: int = 0) -> Snapshot:
    return Snapshot(status=status, total=total, completed=answered - failed, failed=failed)


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
    pace = Pace()
    pace.note(0, now=0.0)
    pace.note(500, now=100.0)
    assert sentence(snapshot(500), pace) == "in_progress: 500 of 1,000 answered, 5.0/s, 1:40 to go"
    full = Snapshot(status="in_progress", total=1_000, completed=497, failed=3, in_flight=64)
    assert sentence(full, pace).endswith("3 failed, 64 in flight")


def test_the_text_says_what_is_held():
    waiting = Snapshot(
        status="in_progress", total=9, completed=0, failed=0, in_flight=0, held="model 'm' is held"
    )
    assert sentence(waiting, Pace()) == "in_progress: 0 of 9 answered, 0 in flight; model 'm' is held"


def test_a_pipe_gets_a_line_for_each_status_and_at_intervals():
    stream = io.StringIO()
    moments = iter([0.0, 0.1, 1.0, 4.9, 5.2, 5.3])
    with shown(stream, now=lambda: next(moments)) as show:
        show(snapshot(0, status="validating", total=0))
        for answered in (0, 100, 490, 520):
            show(snapshot(answered))
        show(snapshot(1_000, status="completed"))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "validating: 0 of 0 answered",
        "in_progress: 0 of 1",
        "in_progress: 520 of 1",
        "completed: 1",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with shown(stream) as show:
        show(snapshot(1_000, status="completed", failed=2))
    assert "completed: 1,000 of 1,000 answered" in stream.getvalue()
    assert "2 failed" in stream.getvalue()


def test_a_forecast_of_the_server_takes_the_place_of_the_own_one():
    pace = Pace()
    pace.note(0, now=0.0)
    pace.note(500, now=100.0)
    known = Snapshot(
        status="in_progress", total=1_000, completed=500, failed=0, why="w", ends_at=1e9, latest_at=2e9
    )
    assert "ends about 2001-09-" in sentence(known, pace)
    assert "to go" not in sentence(known, pace)


def test_what_limits_the_batch_is_below_the_line_when_it_changes():
    stream = io.StringIO()
    moments = iter([0.0, 6.0, 12.0])
    with shown(stream, now=lambda: next(moments)) as show:
        for why in ("It waits.", "It waits.", "It runs."):
            show(Snapshot(status="in_progress", total=9, completed=0, failed=0, why=why))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("  ")]
    assert lines == ["  It waits.", "  It runs."]
