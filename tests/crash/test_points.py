"""Failpoints: which process dies at which point, and that no process dies at a point that is not armed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from nightmill import failpoints
from nightmill.errors import SetupError
from nightmill.failpoints import FAILPOINTS
from nightmill_torture.plan import Fault, Plan, injections

_PASSES = """
from nightmill.failpoints import failpoint
for n in range(5): print(n, flush=True); failpoint('worker.leased')
"""


def _run(code: str, **environment: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout


def test_a_process_dies_at_the_nth_pass_of_an_armed_failpoint() -> None:
    assert _run(_PASSES, NIGHTMILL_CRASH_AT="worker.pinned:1,worker.leased:3") == (
        -signal.SIGKILL,
        "0\n1\n2\n",
    )


def test_no_process_dies_at_a_failpoint_that_is_not_armed() -> None:
    assert _run(_PASSES) == (0, "0\n1\n2\n3\n4\n")
    assert _run(_PASSES, NIGHTMILL_CRASH_AT="worker.pinned") == (0, "0\n1\n2\n3\n4\n")


def test_with_a_folder_only_one_process_dies_at_a_failpoint(tmp_path: Path) -> None:
    environment = {"NIGHTMILL_CRASH_AT": "worker.leased", "NIGHTMILL_CRASH_FOLDER": str(tmp_path)}
    assert _run(_PASSES, **environment)[0] == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["worker.leased"]
    assert _run(_PASSES, **environment)[0] == 0


@pytest.mark.parametrize("asked", ["worker.lunch", "worker.leased:0", "worker.leased:often"])
def test_a_misspelt_failpoint_is_refused(asked: str) -> None:
    with pytest.raises(SetupError, match=r"NIGHTMILL_CRASH_AT"):
        failpoints.armed({"NIGHTMILL_CRASH_AT": asked})


def test_every_failpoint_is_used_in_the_code() -> None:
    source = Path(failpoints.__file__).parent
    components = [path for path in source.rglob("*.py") if path.stem != "crash"]
    code = "".join(path.read_text() for path in components)
    assert [name for name in FAILPOINTS if f'"{name}"' not in code] == []


def _plan(tmp_path: Path, kills: int, seed: int) -> list:
    return list(injections(Plan(folder=tmp_path, kills=kills, seed=seed)))


def test_a_seed_makes_the_same_injections_again(tmp_path: Path) -> None:
    seed = Random().randrange(1_000_000)
    assert _plan(tmp_path, 100, seed) == _plan(tmp_path, 100, seed)
    assert _plan(tmp_path, 100, seed) != _plan(tmp_path, 100, seed + 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_hundred_kills_reach_every_failpoint_and_random_instants(tmp_path: Path, seed: int) -> None:
    planned = _plan(tmp_path, 100, seed)
    names = [name for injection in planned for name, _ in injection.points]
    assert sorted(names) == sorted(FAILPOINTS)
    assert sum(injection.kills for injection in planned) == 100
    assert not any(injection.is_early for injection in planned if injection.points)
    assert all(len(injection.points) == 1 for injection in planned if injection.fault is Fault.FAILPOINT), (
        "the API process ends the server"
    )
    assert {injection.fault for injection in planned} >= {
        Fault.FAILPOINT,
        Fault.SERVER_KILLED,
        Fault.SERVER_ORPHANED,
    }
