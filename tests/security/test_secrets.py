"""Places where a key, a prompt or a forged log line must never appear."""

import json
import stat
from pathlib import Path

import pytest

WRONG_KEY = "sk-nightmill-wrong-4714-0123456789"


@pytest.fixture(scope="module")
def used(served, line):
    """The server after every kind of request that might log or print a secret."""
    batch = served.run_batch(line, metadata={"a\nb": "c\r\nd\x1b[31m"})
    assert batch["status"] == "completed"
    assert batch["request_counts"]["failed"] == 1
    assert served.run_batch(b'{"custom_id": "x"}\n{\n')["status"] == "failed"
    assert served.send("GET", "/v1/batches", Authorization=f"Bearer {WRONG_KEY}")[0] == 401
    assert served.send("GET", "/v1/batches", Authorization="", api_key=WRONG_KEY)[0] == 401
    assert served.send("GET", f"/v1/batches/{served.key}")[0] == 400
    assert served.send("GET", "/v1/batches/%0d%0a2026-01-01%20forged")[0] == 400
    assert served.send_json("/v1/batches", {"input_file_id": WRONG_KEY})[0] == 400
    return served


def test_no_key_and_no_prompt_is_in_the_log(used, secrets, prompt):
    log = used.log.read_text()
    assert "leased under token" in log, "the log level is debug"
    assert not [secret for secret in (*secrets, WRONG_KEY, prompt) if secret in log]


def test_a_client_cannot_forge_a_log_line(used):
    log = used.log.read_text()
    assert "\x1b" not in log
    for line in log.splitlines():
        assert json.loads(line)["level"] in {"DEBUG", "INFO", "WARNING", "ERROR"}, line
        assert line.isprintable()
    assert "forged" not in log


def test_no_key_is_in_a_command_line_or_in_a_child_s_environment(used, secrets):
    parent, *children = used.process_ids()
    assert len(children) >= 2
    for pid in (parent, *children):
        words = Path(f"/proc/{pid}/cmdline").read_text()
        assert not [secret for secret in secrets if secret in words]
    for pid in children:
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "PATH=" in environment
        assert not [secret for secret in secrets if secret in environment]


def test_no_key_is_stored_on_disk(used, secrets):
    for path in used.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [secret for secret in (used.key, WRONG_KEY) if secret.encode() in content], path


def test_other_users_of_the_machine_cannot_read_any_file(used):
    assert stat.S_IMODE(used.folder.stat().st_mode) == 0o700
    for path in used.folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_every_wrong_key_is_refused_by_its_digest_with_the_same_message(used):
    near = used.key[:-1] + ("A" if used.key[-1] != "A" else "B")
    answers = [used.send("GET", "/v1/batches", Authorization=f"Bearer {key}") for key in (near, WRONG_KEY)]
    messages = [json.loads(body)["error"] for _, _, body in answers]
    assert [status for status, _, _ in answers] == [401, 401]
    for message, key in zip(messages, (near, WRONG_KEY), strict=True):
        assert key not in json.dumps(message)
        assert message["code"] == "invalid_api_key"


# --- responses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/batches", 200),
        ("GET", "/v1/files", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/nowhere", 404),
        ("DELETE", "/v1/batches", 405),
        ("POST", "/v1/batches", 400),
        ("GET", "/health", 200),
        ("GET", "/openapi.json", 200),
    ],
)
def test_responses_do_not_reveal_the_server_and_have_a_fixed_content_type(used, method, path, status):
    found, headers, body = used.send(method, path)

    assert found == status
    assert headers["content-type"].startswith("application/json")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"].startswith("req_")
    assert not {"server", "x-powered-by", "set-cookie", "access-control-allow-origin"} & headers.keys()
    assert b"Traceback" not in body
