"""A short run of the crash harness: failpoints, and random kills between them.

`make test` reaches a third of the failpoints, chosen anew in each run; `make test-slow` reaches all of them.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nightmill.failpoints import FAILPOINTS
from nightmill_torture import run
from nightmill_torture.plan import Fault, Injection, Plan, injections, server_name
from nightmill_torture.run import torture
from tests.slow import IS_SLOW, only_slow

KILLS = 75 if IS_SLOW else 25
"""75 are enough to reach every failpoint once, with the kills that end those starts."""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on two quiet cores for 75 kills
def test_no_line_is_lost_at_any_failpoint_or_random_kill(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)  # `--randomly-seed` of pytest repeats it
    planned = injections(Plan(folder=tmp_path, kills=KILLS, seed=seed))
    points = sorted({name for injection in planned for name, _ in injection.points})
    assert points == sorted(FAILPOINTS) if IS_SLOW else len(points) > len(FAILPOINTS) / 4
    sizes = ["--kills", str(KILLS), "--lines", "150", "--batches", "2", "--workers", "1", "--seed", str(seed)]
    command = [sys.executable, "-m", "nightmill", "torture", *sizes, "--folder", str(tmp_path), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:] + ended.stdout
    report = json.loads(ended.stdout)
    assert report["kept"]
    assert report["points"] == points
    assert sum(report["faults"].values()) >= KILLS
    assert set(report["breaches"].values()) == {0}
    assert report["repeated"] <= report["repeated_bound"]
    assert report["lines"] > 14 * KILLS
    assert list(tmp_path.iterdir()) == [], "the run removes its folder"


@only_slow
async def test_a_failpoint_of_a_takeover_is_reached_though_no_earlier_worker_left_a_segment(
    tmp_path: Path,
) -> None:
    plan = Plan(folder=tmp_path / "run", kills=2, lines=20, batches=1, workers=1)
    report = await torture(plan, show=lambda _: None, points=("worker.pinned",))
    assert report.is_kept, report.proof.examples
    assert report.points == {"worker.pinned"}


async def test_no_line_is_lost_when_upstreams_and_then_the_server_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [
        Injection(fault=Fault.UPSTREAM_KILLED, target="first", for_s=0.5),
        Injection(fault=Fault.UPSTREAM_KILLED, target="second", for_s=1.0),
        Injection(fault=Fault.SERVER_KILLED, target=server_name(), after_s=0.2),
    ]
    monkeypatch.setattr(run, "injections", lambda *_: kills)
    plan = Plan(folder=tmp_path / "run", kills=3, lines=100, batches=3, workers=1)
    report = await torture(plan, show=lambda _: None, points=())
    assert report.is_kept, report.proof.examples
    assert report.faults[Fault.UPSTREAM_KILLED] == 2


def test_without_the_package_of_the_harness_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['nightmill_torture'] = None; from nightmill.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "torture", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78
    (line,) = ended.stderr.splitlines()
    assert "the crash harness can't be loaded" in line
    assert list(tmp_path.iterdir()) == []
