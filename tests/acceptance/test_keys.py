"""Keys and tenants of a real server: which requests are allowed, and which data they return."""

import subprocess
import sys

import openai
import pytest

from tests.acceptance.conftest import CHAT, ended, until


@pytest.fixture
def two_projects(keyed, project):
    other = keyed.client(keyed.new_key("beta"))
    return keyed, project, other


def test_two_projects_see_nothing_of_each_other(two_projects, jsonl):
    _, alpha, beta = two_projects
    uploaded = alpha.files.create(file=jsonl(2), purpose="batch")
    batch = alpha.batches.create(
        input_file_id=uploaded.id,
        endpoint=CHAT,
        completion_window="24h",
        extra_headers={"Idempotency-Key": "k"},
    )
    batch = ended(alpha, batch.id)
    assert batch.status == "completed"
    upload = alpha.uploads.create(bytes=1, filename="x", mime_type="text/plain", purpose="batch")

    assert list(beta.files.list()) == list(beta.batches.list()) == []
    for file_id in (uploaded.id, batch.output_file_id):
        for ask in (beta.files.retrieve, beta.files.content, beta.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(file_id)
            assert caught.value.body["message"] == f"No such File object: {file_id}"
    for ask in (beta.batches.retrieve, beta.batches.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(batch.id)
        assert caught.value.body["message"] == f"No batch found with id '{batch.id}'."
    with pytest.raises(openai.NotFoundError):
        beta.batches.list(after=batch.id)
    with pytest.raises(openai.NotFoundError):
        beta.uploads.parts.create(upload.id, data=b"x")
    with pytest.raises(openai.NotFoundError):
        beta.uploads.cancel(upload.id)

    # An input file of another project fails like an unknown file; Idempotency-Keys are separate by project.
    stolen = beta.batches.create(
        input_file_id=uploaded.id,
        endpoint=CHAT,
        completion_window="24h",
        extra_headers={"Idempotency-Key": "k"},
    )
    assert stolen.id != batch.id
    stolen = ended(beta, stolen.id)
    assert stolen.status == "failed"
    assert "does not have access to it" in stolen.errors.data[0].message
    assert len(alpha.files.content(batch.output_file_id).text.splitlines()) == 2


def test_once_a_key_exists_requests_without_a_valid_key_are_refused(two_projects):
    server, alpha, _ = two_projects
    key = alpha.api_key
    missing = server.send("GET", "/v1/batches")
    assert (missing.status, missing.error["message"]) == (
        401,
        "Missing bearer or basic authentication in header",
    )
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("sk-wrong-wrong-wrong-wrong").batches.list()
    assert caught.value.code == "invalid_api_key"
    assert "wrong-wrong" not in caught.value.message
    assert server.send("GET", "/v1/batches", headers={"api-key": key}).status == 200
    assert server.send("GET", "/v1/batches", key=key).status == 200
    # The key is checked before the path, the method and the body.
    for method, path in [("GET", "/v1/nothing"), ("PUT", "/v1/batches"), ("POST", "/v1/files")]:
        assert server.send(method, path, b"{" if method == "POST" else None).status == 401
    assert [server.send("GET", path).status for path in ("/health", "/ready", "/version")] == [200] * 3
    assert key not in server.log.read_text()


def test_a_revoked_key_stops_working(keyed, project):  # the key of `project` keeps authentication on
    server = keyed
    key = server.new_key("gone")
    listed = _keys(server, "list", "--json")
    key_id = next(line.split('"')[3] for line in listed.splitlines() if '"gone"' in line)
    assert server.send("GET", "/v1/batches", key=key).status == 200
    _keys(server, "revoke", key_id)
    until(lambda: server.send("GET", "/v1/batches", key=key).status == 401)


def test_a_server_without_keys_refuses_requests_from_another_origin(server):
    headers = {"Origin": "https://evil.test"}
    assert server.send("GET", "/v1/batches", headers=headers).status == 401
    assert server.send("GET", "/v1/batches", headers={"Host": "evil.test"}).status == 401
    assert "access-control-allow-origin" not in server.send("GET", "/v1/batches").headers


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_server_without_keys_refuses_to_listen_beyond_loopback(tmp_path, address):
    command = [sys.executable, "-m", "nightmill", "serve", "--emulate", "--host", address, "--port", "0"]
    refused = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, check=False, text=True, timeout=60
    )
    assert refused.returncode == 78
    assert "refusing to listen" in refused.stderr
    assert "nightmill keys create" in refused.stderr


def _keys(server, *words: str) -> str:
    command = [sys.executable, "-m", "nightmill", "keys", *words, "--folder", str(server.folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
