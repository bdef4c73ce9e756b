"""The bars on a terminal of 80 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from nightmill.client.progress import Pace, Snapshot, Tracked, shown
from nightmill.client.terminal import one, several

RUNNING = Snapshot(
    batch_id="batch_3f2a9c1b" + "0" * 24,
    status="in_progress",
    total=300,
    completed=260,
    failed=20,
    in_flight=8,
    retrying=3,
    tokens_per_s=1_200.0,
    started_at=0.0,
    deadline=90_000.0,
    ends_at=20.0,
    latest_at=31.0,
    why="8 of 8 in flight on gpu; the settings fix this limit.",
    failures='failed: 20x 404 "The model nope does not exist."',
)


def tracked(snapshot: Snapshot) -> Tracked:
    pace = Pace()
    pace.note(snapshot.done - 50, now=0.0)
    pace.note(snapshot.done, now=2.0)
    return Tracked(snapshot, 0.0, pace)


def text_of(view: RenderableType, *, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_one_batch_has_its_bar_and_below_it_all_that_is_known():
    bar, *rest = text_of(one(tracked(RUNNING), 12.0))
    assert bar.startswith("3f2a9c1b  in_progress  ━━━")
    assert bar.endswith("  93%")
    assert len(bar) == 80
    assert rest[:2] == [
        "280 of 300 done (260 ok, 20 failed)",
        "0:12 elapsed, 25.0/s, 1,200 tokens/s, 8 in flight, 3 retrying",
    ]
    assert rest[2].startswith("0:08 to go, about ")
    assert rest[3:] == [RUNNING.why, RUNNING.failures]


def test_the_bar_is_full_only_when_every_line_is_done():
    nearly = replace(RUNNING, total=100_000, completed=99_979)
    assert text_of(one(tracked(nearly), 12.0))[0].endswith(" 99%")


def test_a_late_end_is_marked():
    late = replace(RUNNING, deadline=19.0, failures="", why=None)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(one(tracked(late), 12.0))
    assert "\x1b[1;33m0:08 to go" in captured.get()
    assert "0:01 after its deadline" in captured.get()


def test_a_server_that_is_away_leaves_the_counts():
    lines = text_of(one(tracked(replace(RUNNING, away_since=10.0, failures="")), 12.0))
    assert lines[1:] == [
        "280 of 300 done (260 ok, 20 failed)",
        "0:12 elapsed",
        "no answer from the server for 2 s; trying again",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_several_batches_have_a_row_each_and_a_sum(width):
    many = replace(RUNNING, total=50_000, completed=10_000, why=None)
    ended = replace(RUNNING, status="completed", completed=280, ended_at=75.0)
    new = Snapshot(batch_id="batch_2", status="validating", total=0, completed=0, failed=0)
    *rows, total = text_of(several([tracked(many), tracked(ended), Tracked(new, 0.0)], 12.0, 24), width=width)
    assert [row.split()[:2] for row in rows] == [
        ["3f2a9c1b", "in_progress"],
        ["3f2a9c1b", "completed"],
        ["batch_2", "validating"],
    ]
    numbers = [it.strip() for it in rows[0].strip("━").split("━")[-1].split("  ")]
    assert list(filter(None, numbers))[-4:] == ["10,020/50,000", "20 failed", "25.0/s", "0:08 to go"]
    assert rows[1].endswith("1:15")
    assert max(map(len, rows)) == width
    assert total == "1 of 3 batches ended; 10,320 of 50,300 done (10,280 ok, 40 failed)"


def test_among_several_a_batch_without_an_end_says_what_limits_it():
    paused = replace(RUNNING, completed=0, failed=0, ends_at=None, lines_per_s=None, limit="paused")
    waiting = Tracked(paused, 0.0)
    rows = text_of(several([waiting, tracked(RUNNING)], 12.0, 24))
    assert rows[0].endswith(" paused")
    assert rows[1].endswith(" to go")
    assert max(map(len, rows)) <= 80


def test_batches_that_do_not_fit_are_counted():
    lines = text_of(several([tracked(RUNNING)] * 30, 12.0, 24))
    assert len(lines) == 23
    assert lines[-2] == "and 9 more"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with shown(stream) as show:
        show(replace(RUNNING, status="completed", completed=280))
    assert "300 of 300 done (280 ok, 20 failed)" in stream.getvalue()
    assert "━━━" in stream.getvalue()


def test_a_bar_is_removed_at_the_end_on_demand(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    kept, removed = Terminal(), Terminal()
    with shown(kept) as show:
        show(RUNNING)
    with shown(removed, at_end="removed") as show:
        show(RUNNING)
    erased_line = "\x1b[2K"
    lines = [text.rpartition("\n")[2].count(erased_line) for text in (kept.getvalue(), removed.getvalue())]
    assert lines[0] == 0
    assert lines[1] >= 4


def test_nothing_is_shown_before_the_first_snapshot(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with shown(stream):
        pass
    assert stream.getvalue() == ""
