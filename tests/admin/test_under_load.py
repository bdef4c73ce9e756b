"""A real server under load is backed up by the real command and killed; the copy continues."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import openai
import pytest

from nightmill.runtime.supervisor import free_port
from tests.slow import only_slow

CHAT = "/v1/chat/completions"
COMMAND = (sys.executable, "-m", "nightmill")
LINES = 1_000


@contextmanager
def emulator(record):
    """An upstream that answers after 20 ms, outlives the servers, and records its requests."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port", str(port)),
            *("--delay-s", "0.02", "--record", str(record)),
        ],
        stdin=subprocess.PIPE,
    )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def server(folder, upstream, log):
    started_at = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [
                *COMMAND,
                "serve",
                "--port",
                "0",
                "--folder",
                folder,
                "--upstream",
                upstream,
                "--concurrency",
                "16",
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            env=os.environ | {"NIGHTMILL_RETENTION__SWEEP_S": "0.1"},
        )
    try:
        give_up_at = time.monotonic() + 60
        while (found := re.search(r"listens on (http://[^/]+/v1)", log.read_text()[started_at:])) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, "the server did not start in time"
            time.sleep(0.02)
        with openai.OpenAI(base_url=found[1], api_key="unused", timeout=60) as client:
            yield client
    finally:
        # The whole process group at once, as in a power cut.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lines(name):
    rows = (
        {
            "custom_id": f"{name}-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "m", "messages": [{"role": "user", "content": f"{name}-{number}"}]},
        }
        for number in range(LINES)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def nightmill(*words):
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )


@only_slow
@pytest.mark.timeout(180)
def test_a_server_under_load_is_backed_up_and_the_copy_completes_every_batch(tmp_path):
    log = tmp_path / "serve.log"
    stop = threading.Event()
    with emulator(tmp_path / "record.jsonl") as upstream:
        with server(tmp_path / "data", upstream, log) as client:

            def create(name):
                uploaded = client.files.create(file=(f"{name}.jsonl", lines(name)), purpose="batch")
                return client.batches.create(
                    input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h"
                ).id

            def upload_and_delete():
                while not stop.is_set():
                    uploaded = client.files.create(file=("x.jsonl", lines("x")[:200]), purpose="user_data")
                    client.files.delete(uploaded.id)

            load = [threading.Thread(target=upload_and_delete) for _ in range(2)]
            for thread in load:
                thread.start()
            try:
                names = {create(name): name for name in ("a", "b", "c")}
                while sum(client.batches.retrieve(it).request_counts.completed for it in names) < 200:
                    time.sleep(0.01)
                made = nightmill("backup", tmp_path / "copy", "--folder", tmp_path / "data")
                checked = nightmill("check", "--folder", tmp_path / "data")
            finally:
                stop.set()
                for thread in load:
                    thread.join()
        assert (made.returncode, made.stderr) == (0, "")
        assert (checked.returncode, checked.stdout) == (0, "")
        checked = nightmill("check", "--folder", tmp_path / "copy", "--deep")
        assert (checked.returncode, checked.stdout) == (0, "")
        with sqlite3.connect(tmp_path / "copy" / "nightmill.sqlite") as rows:
            answered, to_do = rows.execute("SELECT sum(completed), sum(segments_left) FROM batch").fetchone()
        rows.close()
        assert answered >= 200
        assert to_do, "every batch had ended before the backup, so the test shows nothing"

        with server(tmp_path / "copy", upstream, log) as client:
            for batch_id, name in names.items():
                while (batch := client.batches.retrieve(batch_id)).status != "completed":
                    assert batch.status in ("validating", "in_progress", "finalizing")
                    time.sleep(0.05)
                assert batch.request_counts.completed == LINES
                rows = client.files.content(batch.output_file_id).content.splitlines()
                custom_ids = Counter(json.loads(row)["custom_id"] for row in rows)
                assert custom_ids == Counter(f"{name}-{number}" for number in range(LINES))
            # Files left by the kill are deleted by maintenance later and are not reported as damage.
            checked = nightmill("check", "--folder", tmp_path / "copy", "--deep")
            assert (checked.returncode, checked.stdout) == (0, "")
        checked = nightmill("check", "--folder", tmp_path / "copy", "--deep", "--repair")
        assert checked.returncode == 0
