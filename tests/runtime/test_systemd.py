"""A process that is ready says so on the socket that its supervisor named."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nightmill.runtime.systemd import notify_ready


def test_a_process_that_is_ready_sends_it_to_the_named_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("ready")
        supervisor.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", "ready")
        notify_ready()
        assert supervisor.recv(64) == b"READY=1"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are a matter of Linux")
def test_the_name_of_the_socket_may_be_abstract(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(f"\0nightmill-test-{os.getpid()}")
        supervisor.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@nightmill-test-{os.getpid()}")
        notify_ready()
        assert supervisor.recv(64) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/ready"])
def test_without_a_supervisor_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_ready()


def test_a_server_is_ready_once_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("ready")
        supervisor.settimeout(60)
        server = subprocess.Popen(
            [sys.executable, "-m", "nightmill", "serve", "--emulate", "--port", "0"],
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "ready")},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert supervisor.recv(64) == b"READY=1"
        finally:
            server.terminate()
            assert server.wait(60) == 0
