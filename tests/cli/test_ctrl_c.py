"""Ctrl-C in a terminal ends every command that runs long, without a traceback and with what goes on."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nightmill.cli.failures import guarded
from nightmill.client import Client
from nightmill_torture.processes import command_of, living
from tests.terminal import LIMIT_S, Terminal

# No line is answered while a test runs.
_SLOW = {"NIGHTMILL_EMULATOR__DELAY_S": "600"}
_URL = re.compile(r"listens on (http://\S+)")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:

        def start(*words: str | Path, **environment: str) -> Terminal:
            made = Terminal(*words, folder=tmp_path, environment=environment)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose batches do not end. Two presses of Ctrl-C stop it at once."""
    folder = tmp_path_factory.mktemp("served")
    server = Terminal("serve", "--emulate", "--port", "0", folder=folder, environment=_SLOW)
    try:
        server.until("EMULATED")
        found = _URL.search(server.shown)
        assert found is not None
        yield found[1]
        server.press_ctrl_c()
        server.until("stopping: waiting for lines and requests in flight, at most 30 s\n")
        server.press_ctrl_c()
        assert server.end() == 0
        assert "stopping at once; the lines in flight will be sent again\n" in server.shown
        assert re.search(
            r"nightmill stopped; \d unfinished batch\w* goe?s? on at the next start\n", server.shown
        )
        assert "Traceback" not in server.shown
    finally:
        server.close()


def interrupted(started: Terminal, shown: str | Callable[[], bool]) -> str:
    """What is shown after Ctrl-C, pressed once `shown` is; the command must exit with 130."""
    started.until(shown)
    before = len(started.shown)
    started.press_ctrl_c()
    assert started.end() == 130, started.shown
    assert "Traceback" not in started.shown
    return started.shown[before:].removeprefix("^C")


def test_serve_stops_and_says_what_becomes_of_its_batches(terminal):
    started = terminal("serve", "--emulate", "--port", "0")
    started.until("EMULATED")
    started.press_ctrl_c()
    assert started.end() == 0
    assert "Ctrl-C again stops at once; unfinished batches go on at the next start\n" in started.shown
    assert started.shown.endswith("nightmill stopped; no batch is unfinished\n")
    assert "Traceback" not in started.shown


def test_serve_stops_during_its_start(terminal):
    started = terminal("serve", "--emulate", "--port", "0")
    # The emulator is the last process that is started, and the slowest to begin.
    started.until(lambda: any("emulator" in one.command for one in living({started.process.pid})))
    started.press_ctrl_c()
    assert started.end() == 0
    assert re.search(r"nightmill stopped\b.*\n\Z", started.shown)
    assert "Traceback" not in started.shown


def interrupted_at_import(module: str, *words: str, folder: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that gets SIGINT when it imports the module."""
    code = """
import os, signal, sys

module = sys.argv.pop(1)

class Interrupting:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
from nightmill.__main__ import main
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, module, *words],
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        text=True,
        cwd=folder,
    )
    return ended.returncode, ended.stderr


def test_a_command_stops_without_a_traceback_while_it_is_loaded(tmp_path):
    assert interrupted_at_import("nightmill.cli", folder=tmp_path) == (-signal.SIGINT, "")


@pytest.mark.parametrize("command", ["serve", "work"])
@pytest.mark.parametrize("module", ["nightmill.settings", "nightmill.runtime.programs"])
def test_a_server_stops_while_it_is_loaded(tmp_path, command, module):
    ended = interrupted_at_import(module, command, "--emulate", folder=tmp_path)
    assert ended == (0, "nightmill stopped while it was being loaded; nothing had begun\n")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_a_library_makes_of_ctrl_c_is_no_defect(capsys):
    def build() -> None:
        raise RuntimeError("Error building `model` serializer:\n  KeyboardInterrupt: ")

    assert guarded(build) == 130
    assert capsys.readouterr().err == "nightmill: stopped\n"


@pytest.mark.parametrize(
    "words",
    [("submit", "in.jsonl", "--watch"), ("watch", "ID"), ("results", "--follow", "ID")],
    ids=lambda words: words[0],
)
def test_following_a_batch_stops_and_the_batch_goes_on(terminal, base_url, input_file, words):
    path = input_file(2)
    with Client(base_url) as client:
        batch_id = client.submit_file(path, endpoint="/v1/chat/completions").id
        words = [batch_id if word == "ID" else word for word in words]
        started = terminal(*words, OPENAI_BASE_URL=base_url, OPENAI_API_KEY="unused")
        # `results` shows nothing before the first answer.
        follows = "in_progress" if "results" not in words else lambda: has_connection(started)
        assert interrupted(started, follows).strip()
        assert client.api.retrieve_batch(batch_id).status in {"validating", "in_progress"}


def test_a_run_stops_and_says_how_to_go_on(terminal, input_file, tmp_path):
    started = terminal("run", input_file(2), "--emulate", **_SLOW)
    said = interrupted(started, "in_progress")
    assert "the same command goes on" in said
    assert (tmp_path / "in.jsonl.nightmill").is_dir()


def test_a_torture_stops_and_keeps_its_folder(terminal, tmp_path):
    started = terminal("torture", "--kills", "50", "--lines", "100", "--batches", "2")
    said = interrupted(started, lambda: any(tmp_path.glob("nightmill-torture-*/*.log")))
    assert "nightmill: everything is kept in" in said
    end = time.monotonic() + LIMIT_S
    while left := [line for line in commands() if str(tmp_path) in line]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def commands() -> list[str]:
    """The command lines of all processes."""
    return [command_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def has_connection(started: Terminal) -> bool:
    links = Path(f"/proc/{started.process.pid}/fd")
    try:
        return any(str(link.readlink()).startswith("socket:") for link in links.iterdir())
    except FileNotFoundError:  # a file that was closed meanwhile
        return False
