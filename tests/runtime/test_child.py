"""The main function of child processes."""

import os
import subprocess
import sys

import pytest

from nightmill.runtime.child import EMULATOR, LAUNCHER, LLAMA, ROLES, is_hidden
from nightmill.runtime.supervisor import child_command, without_interrupts


@pytest.mark.parametrize("kind", [ROLES, LAUNCHER])
def test_a_child_without_a_first_message_exits_with_0(kind: str) -> None:
    done = subprocess.run(
        child_command(kind, "an_id", "intake"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_kind_that_does_not_exist_is_an_error() -> None:
    done = subprocess.run(
        child_command("guard"), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"there is no child process of kind 'guard'; choose from roles, launcher" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [EMULATOR, LLAMA])
def test_servers_list_their_options(kind: str) -> None:
    done = subprocess.run(child_command(kind, "--help"), capture_output=True, timeout=60, check=True)
    assert b"--port-file" in done.stdout


def test_loading_the_main_function_loads_no_settings_and_no_roles() -> None:
    script = "import sys, nightmill.runtime.child; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_settings_are_withheld_from_children_and_failpoints_are_not() -> None:
    assert is_hidden("NIGHTMILL_UPSTREAM__API_KEY")
    assert not is_hidden("NIGHTMILL_CRASH_AT")
    assert not any(
        map(is_hidden, ("PATH", "HOME", *filter(lambda name: "NIGHTMILL" not in name, os.environ)))
    )


def test_a_child_of_the_supervisor_ignores_ctrl_c_from_its_beginning() -> None:
    script = "import signal, sys; print(signal.getsignal(signal.SIGINT).name, *sys.argv[1:])"
    command = without_interrupts([sys.executable, "-c", script, "two words", "$HOME"])
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout == "SIG_IGN two words $HOME\n"
