import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from nightmill.core.batch import ENDPOINTS

INPUTS = ("chat.jsonl", "responses.jsonl", "embeddings.jsonl")


def program(name: str, *arguments: str, cwd: Path, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(cwd / "examples" / name), *arguments],
        check=False,
        cwd=cwd,
        env=os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused"},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def workplace(tmp_path: Path, root: Path) -> Path:
    shutil.copytree(root / "examples", tmp_path / "examples")
    return tmp_path


def test_the_input_files_are_those_that_their_program_writes(root: Path, tmp_path: Path):
    assert program("make_inputs.py", "--folder", str(tmp_path), cwd=root).returncode == 0
    for name in INPUTS:
        assert (tmp_path / name).read_bytes() == (root / "examples" / name).read_bytes()


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_a_few_hundred_different_request_lines(root: Path, name: str):
    lines = [json.loads(line) for line in (root / "examples" / name).read_bytes().splitlines()]
    assert 200 <= len(lines) <= 500
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert len({json.dumps(line["body"]) for line in lines}) == len(lines)
    assert {line["url"] for line in lines} < set(ENDPOINTS)


def test_the_first_batch_shows_progress_and_the_first_answers(workplace: Path):
    done = program("first_batch.py", "--lines", "40", cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting: nightmill serve --emulate" in done.stdout
    assert "40 of 40 done (40 ok, 0 failed)" in done.stdout
    assert "ticket-001: " in done.stdout
    assert "The emulator made these up." in done.stdout
    named = re.search(
        r"See the batch in a browser: (http://127[.]0[.]0[.]1:\d+/ui/batches/batch_\w+)", done.stdout
    )
    assert named is not None
    command = done.stdout.splitlines()[-1].removeprefix("with: ").split()
    with subprocess.Popen([sys.executable, "-m", "nightmill", *command[1:]], cwd=workplace) as kept:
        try:
            wait_for(named[1])
        finally:
            kept.terminate()


def wait_for(url: str) -> None:
    """Until the page is there: no event says when another process listens."""
    ends_at = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < ends_at
            time.sleep(0.1)


def test_the_first_batch_prints_the_reason_for_waiting(workplace: Path):
    command = [
        sys.executable,
        str(workplace / "examples" / "first_batch.py"),
        "--upstream",
        "http://127.0.0.1:9/v1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as waiting:
        assert waiting.stdout is not None
        printed = ""
        for line in waiting.stdout:
            printed += line
            if "still waiting: " in line:
                waiting.send_signal(signal.SIGINT)
                break
        printed += waiting.stdout.read()
        assert waiting.wait(timeout=60) == 130, printed
    assert "connection refused" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", INPUTS)
def test_the_client_example_downloads_every_answer(workplace: Path, emulated_url: str, name: str):
    done = program("openai_client.py", f"examples/{name}", cwd=workplace, url=emulated_url)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (workplace / "examples" / name).read_bytes().splitlines()
    answers = workplace.joinpath(name).with_suffix(".output.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["custom_id"] for line in answers] == [
        json.loads(line)["custom_id"] for line in asked
    ]


def test_the_python_example_answers_without_a_server(workplace: Path):
    done = program("python_run.py", cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 of 300 done (300 ok, 0 failed)" in done.stdout
