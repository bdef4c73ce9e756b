"""The guarantees of the image: no root user, a read-only root except for the data, SIGTERM is handled.

The default run uses the packages of this environment. `make test-fleet` installs the wheel as the Dockerfile
does, with the hashes of the lock file, into a separate folder.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.deploy.container import DATA, Container, need_namespaces, stop

ROOT = Path(__file__).resolve().parents[2]
LINES = 25
HOLES = f"""
import os, sys, tempfile
tempfile.TemporaryFile().close()
open("{DATA}/probe", "w").close(); os.remove("{DATA}/probe")
found = [f"user {{os.getuid()}}"] if os.getuid() in (0, os.stat("/").st_uid) else []
for folder in {{"/", "/tmp", "/var/tmp", "/dev/shm", "/mnt", "/etc", sys.prefix, *sys.path}}:
    if os.path.isdir(folder):
        try:
            open(os.path.join(folder, "probe"), "w").close()
            found.append(folder)
        except OSError:
            pass
print(found)
"""


def locked(folder: Path) -> Path:
    """A folder with the wheel and its dependencies, as the Dockerfile installs them."""
    uv = str(Path(sys.executable).with_name("uv"))
    lock = str(ROOT / "requirements.lock")
    subprocess.run(
        [uv, "build", "--wheel", "--require-hashes", "--build-constraints", lock, "--out-dir", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel] = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted = folder / "nightmill.txt"
    wanted.write_text(f"nightmill[postgres,objects] @ file://{wheel} --hash=sha256:{digest}\n")
    packages = folder / "packages"
    subprocess.run(
        [
            *(uv, "pip", "install", "--python", sys.executable, "--target", packages, "--compile-bytecode"),
            *("--require-hashes", "--constraints", lock, "--requirements", wanted),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return packages


@pytest.fixture(params=["this environment", "the wheel as locked"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Container:
    need_namespaces()
    (data := tmp_path / "data").mkdir()
    if request.param == "this environment":
        return Container(data, Path(sysconfig.get_path("purelib")), ROOT / "src")
    if not os.environ.get("TEST_FLEET"):
        pytest.skip("installs every package anew: make test-fleet")
    (folder := tmp_path / "wheel").mkdir()
    packages = locked(folder)
    return Container(data, packages, packages)


@contextmanager
def serving(container: Container) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running = container.run(
        "-m", "nightmill", "serve", "--emulate", environment={"NIGHTMILL_API__PORT": str(port)}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        give_up_at = time.monotonic() + 60
        while True:
            assert running.poll() is None, running.stdout and running.stdout.read()
            try:
                with urllib.request.urlopen(f"{url}/ready", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
        yield running, url
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


def probe(url: str) -> int:
    """Runs the HEALTHCHECK of the image against the server."""
    [command] = re.findall(r"^ +CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    _, *arguments = json.loads(command)
    environment = {**os.environ, "NIGHTMILL_API__PORT": url.rsplit(":", 1)[1]}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, check=False, capture_output=True, timeout=20
    )
    return done.returncode


def test_the_container_works_without_root_on_a_read_only_root_and_handles_sigterm(container: Container):
    looking = container.run("-c", HOLES)
    said, _ = looking.communicate(timeout=60)
    assert looking.returncode == 0, said
    assert said.strip() == "[]", f"the process is not confined like a container: {said}"

    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
        }
        for number in range(LINES)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with serving(container) as (running, url), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        give_up_at = time.monotonic() + 60
        while batch.status != "completed":
            assert time.monotonic() < give_up_at, batch
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None
        output = client.files.content(batch.output_file_id).text
        assert [json.loads(line)["custom_id"] for line in output.splitlines()] == [
            line["custom_id"] for line in lines
        ]
        assert probe(url) == 0
        assert stop(running) == 0
        assert probe(url) != 0
    assert (container.data / "nightmill.sqlite").exists()
