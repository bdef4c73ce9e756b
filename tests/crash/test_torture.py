"""A small torture: every named point, and random kills between them. `nightmill torture` plays more of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nightmill.failpoints import FAILPOINTS

KILLS = 75
"""As many as it takes to play every point once, with the kills that end their rounds."""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on two quiet cores
def test_nothing_is_lost_whatever_dies_and_whenever_it_dies(tmp_path: Path) -> None:
    sizes = ["--kills", str(KILLS), "--lines", "150", "--batches", "2", "--workers", "1"]
    command = [sys.executable, "-m", "nightmill", "torture", *sizes, "--folder", str(tmp_path), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:] + ended.stdout
    report = json.loads(ended.stdout)
    assert report["kept"]
    assert report["points"] == sorted(FAILPOINTS)
    assert sum(report["kills"].values()) >= KILLS
    assert set(report["breaches"].values()) == {0}
    assert report["repeated"] <= report["repeated_bound"]
    assert report["lines"] > 1_000
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
