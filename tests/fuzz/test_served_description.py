"""Schemathesis tests a real server against its served OpenAPI description.

Every operation gets well-formed, malformed and missing values, alone and in sequences (create, then use the
result): no 5xx, only described statuses, every answer valid for its schema, and no access without the key.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import pytest

from tests.slow import IS_SLOW

COMMAND = (sys.executable, "-m", "nightmill")
EXAMPLES = 25 if IS_SLOW else 8
"""For each operation and phase."""
# JSON Schema accepts 5.0 as an integer and OpenAI does not. No schema describes the format of an id, or that
# a file must exist. Missing keys are tested by `ignored_auth`.
EXCLUDED = "positive_data_acceptance,missing_required_header"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """URL, key, data folder and log of an emulated server."""
    root = tmp_path_factory.mktemp("described")
    folder, log = root / "data", root / "log"
    made = subprocess.run(
        [*COMMAND, "keys", "create", "test", "--folder", folder], check=True, capture_output=True, text=True
    )
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--emulate", "--port", "0", "--folder", folder],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        give_up_at = time.monotonic() + 60
        while not (found := re.search(r"listens on (http://127\.0\.0\.1:\d+)/", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        yield found[1], made.stdout.strip(), folder, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.timeout(240)
def test_the_server_follows_its_description(served, tmp_path):
    url, key, folder, log = served
    with urlopen(Request(f"{url}/openapi.json")) as answer:
        paths = json.load(answer)["paths"]
    operations = sum(
        len(methods.keys() & {"get", "post", "put", "delete", "patch"}) for methods in paths.values()
    )

    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}", "--checks", "all", "--exclude-checks", EXCLUDED),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "20"),
            *("--generation-database", "none", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "CI"},
        timeout=200,
    )

    assert ran.returncode == 0, ran.stdout[-8_000:] + ran.stderr[-2_000:]
    assert f"Tested: {operations}\n" in ran.stdout, ran.stdout[-3_000:]
    logged = log.read_text()
    assert "unexpected" not in logged
    assert "Traceback" not in logged
    checked = subprocess.run(
        [*COMMAND, "check", "--deep", "--folder", folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout) == (0, "")
