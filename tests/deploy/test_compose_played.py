"""compose.yaml without Docker: its commands, environments and secrets, over a real Postgres and an S3 server.

Only the locations differ: the hosts `postgres` and `s3`, the port, and the folder of the secrets.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import yaml

from tests.deploy.parsing import ROOT, interpolated
from tests.fleet.conftest import Postgres, until
from tests.s3_server import S3Server

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_FLEET"), reason="a whole fleet: make test-fleet")
LINES = 1_200


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_the_services_answer_a_batch_and_stop_on_sigterm(tmp_path: Path, stack: ExitStack):
    text = interpolated((ROOT / "compose.yaml").read_text(), {})
    services = yaml.safe_load(text)["services"]
    shutil.copy(ROOT / "deploy/compose/make-secrets", tmp_path)
    subprocess.run([tmp_path / "make-secrets"], check=True, timeout=30)
    secrets = tmp_path / "secrets"

    folder = Path(tempfile.mkdtemp(prefix="nightmill-compose-"))
    stack.callback(shutil.rmtree, folder)
    folder.chmod(0o755)
    postgres = Postgres(folder)
    stack.callback(postgres.end)
    postgres.start()
    password = (secrets / "postgres_password").read_text()
    postgres.sql("postgres", f"CREATE ROLE nightmill LOGIN PASSWORD '{password}'")
    postgres.sql("postgres", "CREATE DATABASE nightmill OWNER nightmill")
    store = secrets / "store_url"
    store_url = store.read_text()
    store.chmod(0o600)
    store.write_text(store_url.replace("@postgres/", f"@127.0.0.1:{postgres.port}/"))

    s3 = S3Server.start()
    stack.callback(s3.stop)
    bucket = services["worker"]["environment"]["NIGHTMILL_BLOBS__URL"].split("/")[2]
    made = s3.make_bucket()

    def environment(name: str) -> dict[str, str]:
        variables = {
            key: value.replace("/run/secrets", str(secrets))
            .replace("http://s3:3900", s3.endpoint)
            .replace(f"s3://{bucket}/", f"s3://{made}/")
            for key, value in services[name]["environment"].items()
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTMILL_")}
        return clean | variables | {"NIGHTMILL_FOLDER": str(tmp_path / "data"), "NIGHTMILL_API__PORT": "0"}

    def run(name: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nightmill", *words],
            env=environment(name),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip()

    def start(name: str) -> "tuple[subprocess.Popen[bytes], Path]":
        log = tmp_path / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "nightmill", *services[name]["command"]],
                env=environment(name),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        stack.callback(process.wait, timeout=60)
        stack.callback(process.kill)
        return process, log

    key = run("migrate", "keys", "create", "laptop")
    run("migrate", *services["migrate"]["command"])
    api, log = start("api")
    others = [start("worker")[0], start("worker")[0], start("keeper")[0]]
    found = until(lambda: re.search(r"listens on http://127\.0\.0\.1:(\d+)/v1", log.read_text()))
    client = stack.enter_context(openai.OpenAI(base_url=f"http://127.0.0.1:{found[1]}/v1", api_key=key))
    lines = "".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
            }
        )
        + "\n"
        for number in range(LINES)
    )
    file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=90, pause_s=0.2)
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None
    answered = [json.loads(line)["custom_id"] for line in client.files.content(output).text.splitlines()]
    assert answered == [f"line-{number}" for number in range(LINES)]
    for process in (*others, api):
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in (*others, api)] == [0, 0, 0, 0]
    assert list((tmp_path / "data").glob("*")) == [], "with a bucket no container writes to its disk"
