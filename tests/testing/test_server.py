"""`nightmill.testing.server` and the pytest fixtures, as the tests of another project use them."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

import nightmill
from nightmill.errors import SetupError
from nightmill.testing import RunningServer, server

ROOT = Path(__file__).resolve().parents[2]
END = {"completed", "failed", "expired", "cancelled"}
SCHEMA = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "support"]}},
    "required": ["queue"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    """A server beside an environment that would change or break a `nightmill serve`."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NIGHTMILL_API__PROT", "1")
            patch.setenv("NIGHTMILL_CONFIG", "/nowhere/at/all")
            patch.setenv("http_proxy", "http://127.0.0.1:9")
            limits = {"completion_windows": ["24h", "3s"]}
            started = stack.enter_context(server({"limits": limits, "upstream": {"max_attempts": 2}}))
        yield started


def line(name: str, text: str, **more: Any) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def ended(running: RunningServer, lines: Sequence[str], *, window: Any = "24h") -> tuple[Any, dict[str, Any]]:
    """The batch at its end, and what it says of each line."""
    client = OpenAI(base_url=running.base_url, api_key=running.api_key)
    content = "".join(f"{text}\n" for text in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window
    )
    until = time.monotonic() + 60
    while batch.status not in END:
        assert time.monotonic() < until, running.log_tail()
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    found: dict[str, Any] = {}
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        for text in client.files.content(file_id).text.splitlines():
            answered = json.loads(text)
            found[answered["custom_id"]] = answered
    return batch, found


def content_of(answered: dict[str, Any]) -> str:
    return answered["response"]["body"]["choices"][0]["message"]["content"]


def test_a_batch_is_answered_with_the_faults_that_its_lines_order(running: RunningServer) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    lines = [
        line("plain", "hi"),
        line("again", "hi [emulate: 500]"),
        line("json", "hi", response_format=format_),
        line("bad", "hi [emulate: 400, code content_policy_violation]"),
        line("refused", "hi [emulate: refusal]"),
        line("broken", "hi [emulate: reset]"),
        line("dead", "hi [emulate: 500, times always]"),
    ]
    batch, found = ended(running, lines)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 5, 2)
    assert "emulated" in content_of(found["plain"])
    assert "emulated" in content_of(found["again"])
    assert "emulated" in content_of(found["broken"])
    assert json.loads(content_of(found["json"]))["queue"] in {"billing", "support"}
    assert found["refused"]["response"]["body"]["choices"][0]["message"]["refusal"]
    assert found["bad"]["response"]["status_code"] == 400
    assert found["dead"]["response"]["status_code"] == 500
    assert found["bad"]["response"]["body"]["error"]["code"] == "content_policy_violation"


def test_a_batch_with_a_line_that_hangs_expires(running: RunningServer) -> None:
    batch, found = ended(
        running, [line("quick", "hi"), line("stuck", "hi [emulate: hang, times always]")], window="3s"
    )
    assert batch.status == "expired"
    assert set(found) == {"quick", "stuck"}
    assert found["stuck"]["error"]["code"] == "batch_expired"


def test_the_environment_of_the_machine_is_left_alone(running: RunningServer) -> None:
    assert running.environment == {"OPENAI_BASE_URL": running.base_url, "OPENAI_API_KEY": running.api_key}
    assert running.folder.is_dir()
    assert not Path("nightmill-data").exists()
    assert "EMULATED" in running.log_path.read_text()


def test_a_server_ends_with_its_block() -> None:
    with server() as running:
        place = urlsplit(running.base_url)
        assert answers(place.port)
    assert not answers(place.port)
    assert not running.folder.exists()


def test_a_wrong_setting_is_named_before_anything_starts() -> None:
    with pytest.raises(SetupError, match=r"emulator\.fail_rate"), server({"emulator": {"fail_rate": 2}}):
        pytest.fail("it has started")


def test_a_server_that_cannot_start_is_an_error_with_its_log() -> None:
    with pytest.raises(SetupError, match="with 0 workers"), server({"worker": {"processes": 0}}):
        pytest.fail("it has started")


def test_the_server_ends_when_its_tests_are_killed() -> None:
    program = (
        "import sys, time\nfrom nightmill.testing import server\n"
        "with server() as running:\n    print(running.base_url, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        port = urlsplit(tests.stdout.readline().strip()).port
        tests.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while answers(port):
        assert time.monotonic() < until
        time.sleep(0.05)


def answers(port: int | None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


MINE = """
import os
import pytest
from openai import OpenAI

@pytest.fixture(scope="session")
def nightmill_settings():
    return {"emulator": {"fail_rate": 1.0, "fail_statuses": [422]}}

def test_the_settings_are_mine(nightmill_env):
    assert os.environ["OPENAI_BASE_URL"] == nightmill_env.base_url
    assert OpenAI().batches.list().data == []

def test_the_server_is_the_same(nightmill_server, nightmill_env):
    assert nightmill_server is nightmill_env

def test_the_variables_are_set_only_where_they_are_asked_for():
    assert os.environ["OPENAI_BASE_URL"] == "http://mine/v1"
"""


def test_pytest_has_fixtures_for_the_server(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(MINE)
    command = [
        *(sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "nightmill.pytest_plugin"),
        "test_mine.py",
    ]
    mine = {"OPENAI_BASE_URL": "http://mine/v1", "OPENAI_API_KEY": "sk-mine"}
    environment = os.environ | mine | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_fixtures_are_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [(name, module)] = project["entry-points"]["pytest11"].items()
    assert name == module
    assert import_module(module).nightmill_server is not None


def test_testing_is_offered_at_the_top_of_the_package() -> None:
    assert nightmill.testing.server is server
