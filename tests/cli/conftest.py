"""The command as a function: takes arguments, returns the exit code and the printed text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightmill import cli


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def isolated_settings(monkeypatch, tmp_path):
    for name in [*os.environ]:
        if name.startswith(("NIGHTMILL_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def short_pauses_between_attempts(monkeypatch):
    """The `openai` package repeats failed requests; its pauses of a second prove nothing here."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def nightmill(capsys) -> Callable[..., Ran]:
    """Runs a command line in this process."""

    def run(*words: str | Path) -> Ran:
        code = cli.invoke([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(int(code), printed.out, printed.err)

    return run


@pytest.fixture
def command() -> Callable[..., Ran]:
    """Runs a command line as a separate process."""

    def run(*words: str | Path, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "nightmill", *map(str, words)],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
            env=os.environ | environment,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def input_file(tmp_path) -> Callable[..., Path]:
    def write(lines: int = 3, *, bad: tuple[str, ...] = (), name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        good = [
            json.dumps(
                {
                    "custom_id": f"line-{number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"model": "m", "messages": [{"role": "user", "content": f"Say {number}"}]},
                }
            )
            for number in range(lines)
        ]
        path.write_text("".join(line + "\n" for line in [*good, *bad]))
        return path

    return write
