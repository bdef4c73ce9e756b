"""The recording of commands as a moving picture, and the pictures of the README."""

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

PROGRAM = r"""
import os, sys, time
assert all(os.isatty(stream) for stream in (0, 1, 2))
print("size", os.get_terminal_size().columns, os.get_terminal_size().lines)
for percent in (0, 50, 100):
    sys.stdout.write(f"\r\x1b[32m{percent}%\x1b[0m <done> & more")
    sys.stdout.flush()
    time.sleep(0.1)
print("\n\x1b[1;31mend\x1b[0m")
"""


@pytest.fixture(scope="module")
def frames(record: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    terminal = record.Terminal(40, 6)
    terminal.type("nightmill watch")
    folder = tmp_path_factory.mktemp("recorded")
    environment = {"PATH": os.environ["PATH"]}
    assert terminal.run([sys.executable, "-c", PROGRAM], environment=environment, folder=folder) == 0
    return record.shortened(terminal.frames)


def seen(frame: object) -> list[str]:
    """The lines of a screen as text."""
    return ["".join(run.text for run in line) for line in frame.screen if line]  # type: ignore[attr-defined]


def test_a_recording_shows_the_typed_command_and_each_state_of_a_line(frames: list[object]):
    screens = [seen(frame) for frame in frames]
    assert screens[0] == ["$"]
    assert ["$nightmill watch", "size 40 6", "50%<done> & more"] in screens
    assert screens[-1] == ["$nightmill watch", "size 40 6", "100%<done> & more", "end"]


def test_colours_and_bold_are_kept(frames: list[object], record: ModuleType):
    [end] = frames[-1].screen[3]  # type: ignore[attr-defined]
    assert (end.text, end.colour, end.is_bold) == ("end", record._COLOURS["red"], True)


def test_the_exit_status_of_a_recorded_program_is_known(record: ModuleType, tmp_path: Path):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    assert record.Terminal(40, 6).run(command, environment={}, folder=tmp_path) == 3


def test_pauses_are_shortened_and_screens_too_short_to_see_left_out(record: ModuleType):
    blank, first, second, last = (
        (record.Run(0, name, "#fff"),) for name in ("blank", "first", "second", "last")
    )
    kept = record.shortened(
        [
            record.Frame((blank,), 60.0),
            record.Frame((first,), 0.01),
            record.Frame((second,), 0.5),
            record.Frame((second,), 0.2),
            record.Frame((last,), 0.0),
        ]
    )
    assert [frame.screen for frame in kept] == [(blank,), (second,), (last,)]
    assert [frame.seconds for frame in kept] == pytest.approx([record.LONGEST_S, 0.71, record.LAST_S])


def test_the_picture_moves_over_every_frame_and_stands_at_the_last(frames: list[object], record: ModuleType):
    picture = record.svg(frames, columns=40, rows=6, title="A <title>")
    ET.fromstring(picture)
    assert "&lt;done&gt; &amp; more" in picture
    last = f"translateY({-(len(frames) - 1) * 6 * 18}px)"
    assert f"#screens{{transform:{last};animation" in picture
    assert picture.count("%{transform") == len(frames) + 1
    assert "prefers-reduced-motion:reduce" in picture


@pytest.mark.parametrize("name", ["watch.svg", "overview.svg"])
def test_a_picture_is_whole_and_needs_nothing_else(root: Path, name: str):
    text = (root / "docs/pictures" / name).read_text(encoding="utf-8")
    picture = ET.fromstring(text)
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.find("{http://www.w3.org/2000/svg}title") is not None
    assert "<script" not in text
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+|@import|url\((?!#)", text) == []


def test_the_recorded_picture_ends_with_a_finished_batch(root: Path, record: ModuleType):
    text = (root / "docs/pictures/watch.svg").read_text(encoding="utf-8")
    assert record.SCENE[0] in text
    assert "completed" in text
    assert str(root) not in text
    assert "/tmp" not in text
