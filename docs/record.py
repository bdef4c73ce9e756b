"""Records commands in a real terminal as a moving picture: `make pictures` writes docs/pictures/watch.svg.

The commands of `SCENE` run one after the other in a pseudo-terminal against an emulated server. A terminal
emulator (pyte) turns their output into screens, and the SVG shows each screen for as long as it stood; pauses
are shortened to `LONGEST_S`. The picture needs no script and no font file, so it moves in a README too. Where
motion is reduced, and in programs that show no motion, it is the last screen.
"""

import importlib.util
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from html import escape
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any, cast

import pyte

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/pictures/watch.svg"
SCENE = ("nightmill submit examples/chat.jsonl --watch",)
# Slow enough that the batch can be watched, quick enough for a picture.
SERVER = {"NIGHTMILL_EMULATOR__DELAY_S": "0.8", "NIGHTMILL_UPSTREAM__CONCURRENCY": "24"}
COLUMNS, ROWS = 80, 24
LONGEST_S = 1.2
SHORTEST_S = 0.08
"""Screens that stood for less are left out."""
LAST_S = 4.0
"""How long the last screen stands before the picture begins again."""
KEYS_A_SECOND = 25.0
TIMEOUT_S = 120.0

_CELL_WIDTH, _LINE_HEIGHT, _FONT_SIZE = 8.4, 18, 14
_MARGIN, _BAR = 16, 30
_BACKGROUND, _FOREGROUND = "#16181d", "#d7dae0"
_COLOURS = {
    "black": "#3b4048",
    "red": "#ff6b7f",
    "green": "#6fcf79",
    "brown": "#e8b75a",
    "blue": "#62aeef",
    "magenta": "#d98ae8",
    "cyan": "#56c8d8",
    "white": "#d7dae0",
    "brightblack": "#7d8590",
    "brightred": "#ff8f9e",
    "brightgreen": "#94e29c",
    "brightbrown": "#f5d08a",
    "brightblue": "#8cc6f7",
    "brightmagenta": "#e7aef2",
    "brightcyan": "#82dde9",
    "brightwhite": "#ffffff",
}

PAGE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
 role="img"><title>{title}</title>
<style>
text{{font:{font_size}px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;
fill:{foreground};white-space:pre}}
#screens{{{stop};animation:play {total_s:.2f}s step-end infinite}}
@keyframes play{{{moves}100%{{{stop}}}}}
@media (prefers-reduced-motion:reduce){{#screens{{animation:none}}}}
</style>
<rect width="{width}" height="{height}" rx="8" fill="{background}"/>
{dots}
<defs><clipPath id="window"><rect width="{width}" height="{step}"/></clipPath>
{lines}
</defs>
<g transform="translate({left},{top})" clip-path="url(#window)"><g id="screens">
{screens}
</g></g>
</svg>
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Characters of one line that look the same. `column` is that of the first."""

    column: int
    text: str
    colour: str
    is_bold: bool = False


Screen = tuple[tuple[Run, ...], ...]
"""The lines of a terminal from the top."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A screen and the seconds for which it stands."""

    screen: Screen
    seconds: float


class Terminal:
    """A terminal of this size, in which programs run one after the other; `frames` has what they show."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.frames: list[Frame] = []

    def type(self, command: str) -> None:
        """Shows a prompt and the command, one key after the other."""
        self._see(b"\x1b[32m$\x1b[0m ", LONGEST_S)
        for key in command:
            self._see(key.encode(), 1 / KEYS_A_SECOND)
        self._see(b"\r\n", 0.3)

    def run(self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> int:
        """Runs a program in the terminal until it ends; returns its exit status."""
        ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", self._rows, self._columns, 0, 0))
        child = subprocess.Popen(  # noqa: S603 - the commands of this file
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        give_up_at = time.monotonic() + TIMEOUT_S
        try:
            seen_at = time.monotonic()
            while select.select([ours], [], [], max(0.0, give_up_at - time.monotonic()))[0]:
                try:
                    output = os.read(ours, 65_536)
                except OSError:  # Linux reports the end of a terminal's last program as an error
                    break
                if not output:
                    break
                now = time.monotonic()
                self._stand(now - seen_at)
                self._see(output, 0.0)
                seen_at = now
            else:
                raise TimeoutError(f"{command[0]} did not end within {TIMEOUT_S:.0f} s")
            return child.wait(TIMEOUT_S)
        finally:
            os.close(ours)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def _see(self, output: bytes, seconds: float) -> None:
        self._stream.feed(output)
        self.frames.append(Frame(screen_of(self._screen), seconds))

    def _stand(self, seconds: float) -> None:
        if self.frames:
            last = self.frames[-1]
            self.frames[-1] = Frame(last.screen, last.seconds + seconds)


def screen_of(screen: pyte.Screen) -> Screen:
    lines: list[tuple[Run, ...]] = []
    for row in range(screen.lines):
        runs: list[Run] = []
        for column in range(screen.columns):
            cell: Any = cast("Any", screen.buffer)[row][column]
            front, back = str(cell.fg), str(cell.bg)
            colour = colour_of(back if cell.reverse else front)
            if runs and (runs[-1].colour, runs[-1].is_bold) == (colour, bool(cell.bold)):
                last = runs[-1]
                runs[-1] = Run(last.column, last.text + str(cell.data), colour, last.is_bold)
            else:
                runs.append(Run(column, str(cell.data), colour, bool(cell.bold)))
        lines.append(tuple(trimmed(run) for run in runs if run.text.strip()))
    return tuple(lines)


def trimmed(run: Run) -> Run:
    text = run.text.lstrip(" ")
    return Run(run.column + len(run.text) - len(text), text.rstrip(" "), run.colour, run.is_bold)


def colour_of(name: str) -> str:
    """The colour of a name or a number of six digits, as pyte gives it."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return _COLOURS.get(name, _FOREGROUND)


def shortened(frames: Sequence[Frame]) -> list[Frame]:
    """Joins equal screens, leaves out those that stood too short to be seen, and shortens pauses."""
    kept: list[Frame] = []
    carried_s = 0.0
    for at, frame in enumerate(frames):
        seconds = min(frame.seconds, LONGEST_S) + carried_s
        carried_s = 0.0
        if kept and kept[-1].screen == frame.screen:
            kept[-1] = Frame(frame.screen, min(kept[-1].seconds + seconds, LONGEST_S))
        elif seconds < SHORTEST_S and at < len(frames) - 1:
            carried_s = seconds
        else:
            kept.append(Frame(frame.screen, seconds))
    kept[-1] = Frame(kept[-1].screen, LAST_S)
    return kept


def svg(frames: Sequence[Frame], *, columns: int, rows: int, title: str) -> str:
    """The frames as a moving picture: they stand below each other, and a window moves over them in steps."""
    width = round(columns * _CELL_WIDTH + 2 * _MARGIN)
    height = rows * _LINE_HEIGHT + 2 * _MARGIN + _BAR
    step = rows * _LINE_HEIGHT
    total_s = sum(frame.seconds for frame in frames)
    lines: dict[tuple[Run, ...], int] = {}
    shown: list[str] = []
    moves: list[str] = []
    at_s = 0.0
    for number, frame in enumerate(frames):
        moves.append(f"{100 * at_s / total_s:.3f}%{{transform:translateY({-number * step}px)}}")
        at_s += frame.seconds
        for row, line in enumerate(frame.screen):
            if line:
                name = lines.setdefault(line, len(lines))
                shown.append(f'<use href="#l{name}" y="{number * step + row * _LINE_HEIGHT}"/>')
    stop = f"transform:translateY({-(len(frames) - 1) * step}px)"
    defined = [f'<g id="l{name}">{"".join(map(text, line))}</g>' for line, name in lines.items()]
    dots = [
        f'<circle cx="{_MARGIN + 6 + 20 * place}" cy="{_BAR / 2 + 3}" r="6" fill="{colour}"/>'
        for place, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    return PAGE.format(
        width=width,
        height=height,
        title=escape(title),
        font_size=_FONT_SIZE,
        foreground=_FOREGROUND,
        background=_BACKGROUND,
        stop=stop,
        total_s=total_s,
        moves="".join(moves),
        dots="".join(dots),
        step=step,
        lines="\n".join(defined),
        left=_MARGIN,
        top=_BAR + _MARGIN // 2,
        screens="\n".join(shown),
    )


def text(run: Run) -> str:
    # The width is set, so that columns stay below each other in any font.
    colour = "" if run.colour == _FOREGROUND else f' fill="{run.colour}" style="fill:{run.colour}"'
    bold = ' font-weight="bold"' if run.is_bold else ""
    return (
        f'<text x="{run.column * _CELL_WIDTH:.1f}" y="{_FONT_SIZE}" '
        f'textLength="{len(run.text) * _CELL_WIDTH:.1f}"{colour}{bold}>{escape(run.text)}</text>'
    )


def example() -> Any:
    """examples/first_batch.py, which starts a server for a while."""
    spec = importlib.util.spec_from_file_location("first_batch", ROOT / "examples/first_batch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    terminal = Terminal(COLUMNS, ROWS)
    with example().server(["--emulate"], **SERVER) as url, tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(ROOT / "examples")
        programs = Path(sys.executable).parent
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": folder,
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": "unused",
        }
        for command in SCENE:
            terminal.type(command)
            name, *arguments = command.split()
            status = terminal.run(
                [str(programs / name), *arguments], environment=environment, folder=Path(folder)
            )
            if status:
                sys.exit(f"{command} ended with {status}")
    frames = shortened(terminal.frames)
    used = max(row for frame in frames for row, line in enumerate(frame.screen, start=1) if line)
    picture = svg(frames, columns=COLUMNS, rows=used, title=f"A terminal: {SCENE[0]}")
    PICTURE.write_text(picture, encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}: {len(frames)} screens, {len(picture):,} characters\n")


if __name__ == "__main__":
    main()
