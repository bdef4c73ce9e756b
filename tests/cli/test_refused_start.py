"""A start of `serve` that is refused says why and leaves no data folder behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightmill.errors import SetupError


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def refused(folder: Path, *words: str, **environment: str) -> str:
    """What a start that is refused prints."""
    command = [sys.executable, "-m", "nightmill", "serve", "--folder", str(folder), *words]
    ended = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert ended.returncode == SetupError.exit_code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("below", ["new", "new/and/deep"])
def test_a_taken_port_leaves_no_folder(tmp_path, taken_port, below):
    said = refused(tmp_path / below, "--emulate", "--port", str(taken_port))
    assert f"can't listen on 127.0.0.1:{taken_port}" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("--emulate", "--host", "0.0.0.0", "--port", "0"), {}, "refusing to listen on 0.0.0.0"),
        (("--emulate", "--host", "192.0.2.1", "--port", "0"), {}, "refusing to listen on 192.0.2.1"),
        (("--emulate", "--port", "0"), {"NIGHTMILL_KEYLESS_ON_LOOPBACK": "0"}, "set keyless_on_loopback"),
        (("--emulate", "--port", "99999"), {}, "api.port"),
        (("--emulate", "--workers", "0"), {}, "with 0 workers"),
        (("--port", "0"), {}, "there is no upstream"),
        (("--upstream", "localhost:99999"), {}, "the port of the URL"),
        (("--upstream", "localhost:8080"), {}, "the address of this server itself"),
        (("--emulate", "--port", "0"), {"NIGHTMILL_BLOBS__URL": "memory://"}, "blobs.url 'memory://'"),
    ],
)
def test_a_refused_start_leaves_no_folder(tmp_path, words, environment, message):
    assert message in refused(tmp_path / "new", *words, **environment)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_named_before_the_address_of_its_server(tmp_path, taken_port):
    from nightmill.runtime.data_folder_lock import locked_folder

    with locked_folder(tmp_path):
        said = refused(tmp_path, "--emulate", "--port", str(taken_port))
    assert f"the data folder {tmp_path} is in use by process" in said
