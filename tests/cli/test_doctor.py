"""`nightmill doctor`: what is found on a server, and on this machine."""

import json
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx2
import pytest
from openai import OpenAI

import nightmill as package
from nightmill.cli.server_checks import Finding, ServerChecks

NOW = 1_800_000_000.0
BASE = "http://mill:8080/v1"
HEALTHY: dict[str, Any] = {
    "GET /version": {"name": "nightmill", "version": package.__version__},
    "GET /v1/batches": {"object": "list", "data": []},
    "GET /v1/models": {"object": "list", "data": [{"id": f"model-{number}"} for number in range(5)]},
    "GET /ready": {"status": "ready"},
    "GET /nightmill/v1/upstreams": {"data": [{"name": "gpu-a", "state": "active"}]},
    "POST /nightmill/v1/upstreams/gpu-a/test": {
        "is_usable": True,
        "steps": [{"name": "request", "is_ok": True, "text": "model-0 answers."}],
    },
}


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message}}


@pytest.fixture
def findings() -> Callable[..., list[Finding]]:
    """What is found on a server that answers as `HEALTHY` with the given changes."""

    def run(
        changes: dict[str, Any] | None = None, *, server_ahead_s: float = 0.0, asks_models: bool = True
    ) -> list[Finding]:
        answers = HEALTHY | (changes or {})

        def respond(request: httpx2.Request) -> httpx2.Response:
            answer = answers.get(f"{request.method} {request.url.path}")
            status, body = answer if isinstance(answer, tuple) else (200, answer)
            if body is None:
                status, body = 404, {"detail": "Not Found"}
            date = formatdate(NOW + server_ahead_s, usegmt=True)
            return httpx2.Response(status, json=body, headers={"date": date})

        transport = httpx2.MockTransport(respond)
        with OpenAI(base_url=BASE, api_key="k", http_client=httpx2.Client(transport=transport)) as client:
            checks = ServerChecks(client, has_key=True, asks_models=asks_models, clock=lambda: NOW)
            return list(checks.findings())

    return run


def shown(found: list[Finding]) -> list[tuple[str, str]]:
    return [(str(finding.level), finding.subject) for finding in found]


def text_of(found: list[Finding], subject: str) -> str:
    (text,) = (finding.text for finding in found if finding.subject == subject)
    return text


def test_on_a_healthy_server_all_is_well(findings):
    found = findings()
    subjects = ("server", "key", "clock", "models", "ready", "upstream")
    assert shown(found) == [("ok", subject) for subject in subjects]
    assert text_of(found, "server") == f"nightmill {package.__version__} answers at {BASE}"
    assert text_of(found, "models") == "model-0, model-1, model-2 and 2 more"
    assert text_of(found, "upstream") == "gpu-a: model-0 answers"


def test_a_refused_key_ends_the_checks_and_says_what_to_do(findings):
    found = findings({"GET /v1/batches": refusal(401, "Missing bearer authentication")})
    assert shown(found) == [("ok", "server"), ("failed", "key")]
    assert "set OPENAI_API_KEY to a key of this server" in text_of(found, "key")


def test_a_server_without_a_batch_api_is_named(findings):
    found = findings({"GET /version": None, "GET /v1/batches": None})
    assert shown(found) == [("failed", "server")]
    assert "http://mill:8080/v1 has no Batch API" in text_of(found, "server")


def test_of_another_batch_server_what_it_has_is_checked(findings):
    found = findings({"GET /version": None})
    assert shown(found) == [("ok", "server"), ("ok", "key"), ("ok", "clock"), ("ok", "models")]
    assert "not nightmill" in text_of(found, "server")


def test_another_version_is_pointed_out(findings):
    found = findings({"GET /version": {"name": "nightmill", "version": "9.9"}})
    assert shown(found)[0] == ("warning", "server")
    assert f"this command is {package.__version__}" in text_of(found, "server")


@pytest.mark.parametrize(("ahead_s", "said"), [(60, "60 s ahead of"), (-61, "60 s behind")])
def test_clocks_that_differ_are_pointed_out(findings, ahead_s, said):
    found = findings(server_ahead_s=ahead_s)
    assert ("warning", "clock") in shown(found)
    assert said in text_of(found, "clock")


def test_what_keeps_lines_from_being_answered_is_repeated(findings):
    found = findings({"GET /ready": {"status": "ready", "problems": ["no worker has reported", "disk full"]}})
    assert [finding.text for finding in found if finding.subject == "ready"] == [
        "no worker has reported", "disk full"
    ]  # fmt: skip
    assert shown(found).count(("failed", "ready")) == 2


def test_an_upstream_that_cannot_be_used_says_why(findings):
    steps = [
        {"name": "connection", "is_ok": False, "text": "gpu-a refuses the connection: start the server."},
    ]
    found = findings({"POST /nightmill/v1/upstreams/gpu-a/test": {"is_usable": False, "steps": steps}})
    assert shown(found)[-1] == ("failed", "upstream")
    assert text_of(found, "upstream") == "gpu-a: gpu-a refuses the connection: start the server"


def test_a_paused_upstream_and_a_quick_check_send_no_request(findings):
    gone = {"POST /nightmill/v1/upstreams/gpu-a/test": refusal(500, "must not be asked")}
    found = findings(
        {**gone, "GET /nightmill/v1/upstreams": {"data": [{"name": "gpu-a", "state": "paused"}]}}
    )
    assert (
        text_of(found, "upstream") == "gpu-a: it is paused; continue with: nightmill upstreams resume gpu-a"
    )
    assert shown(findings(gone, asks_models=False))[-1] == ("skipped", "upstream")


def test_without_an_admin_key_the_upstreams_are_left_out(findings):
    found = findings({"GET /nightmill/v1/upstreams": refusal(401, "It needs an admin key")})
    assert shown(found)[-1] == ("skipped", "upstreams")


def test_no_upstream_and_no_model_are_said(findings):
    found = findings({"GET /nightmill/v1/upstreams": {"data": []}, "GET /v1/models": {"data": []}})
    assert ("warning", "models") in shown(found)
    assert "nightmill upstreams add" in text_of(found, "upstreams")


# --- this machine -----------------------------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def doctor(nightmill, free_port, monkeypatch):
    """The command where no server runs: exit code and findings by subject."""
    monkeypatch.setenv("NIGHTMILL_API__PORT", str(free_port))

    def run(*words: str) -> tuple[int, dict[str, tuple[str, str]]]:
        ran = nightmill("doctor", "--json", "--base-url", f"http://127.0.0.1:{free_port}/v1", *words)
        rows = [json.loads(line) for line in ran.out.splitlines()]
        return ran.code, {row["subject"]: (row["level"], row["text"]) for row in rows}

    return run


def test_without_a_server_this_machine_is_checked(doctor, free_port):
    code, found = doctor()
    assert code == 78
    assert found["server"] == (
        "failed", f"no server at http://127.0.0.1:{free_port}; start one with: nightmill serve --emulate"
    )  # fmt: skip
    levels = {subject: level for subject, (level, _) in found.items() if subject != "disk"}
    assert levels == {
        "server": "failed", "settings": "ok", "folder": "skipped", "address": "ok", "upstreams": "warning"
    }  # fmt: skip


def test_a_disk_below_its_watermark_fails(doctor, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_RETENTION__FREE_BYTES", str(1 << 60))
    level, text = doctor()[1]["disk"]
    assert level == "failed"
    assert "nothing is written below 1152921.5 TB (retention.free_bytes)" in text


def test_a_folder_that_is_a_file_and_a_taken_port_are_named(doctor, tmp_path, free_port):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", free_port)) as listener:
        listener.settimeout(0.1)
        code, found = doctor("--folder", str(tmp_path / "file"), "--base-url", "http://127.0.0.1:1/v1")
    assert code == 78
    assert found["folder"][0] == "failed"
    assert found["address"][0] == "warning"
    assert f"can't listen on 127.0.0.1:{free_port}: Address already in use" in found["address"][1]


def test_a_wrong_setting_ends_the_checks_of_this_machine(doctor, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_PROT", "1")
    code, found = doctor()
    assert code == 78
    assert set(found) == {"server", "settings"}
    assert "there is no such setting" in found["settings"][1]


def test_the_upstream_of_the_settings_is_tried(doctor, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_UPSTREAM__URL", "http://127.0.0.1:1/v1")
    level, text = doctor()[1]["upstream"]
    assert level == "failed"
    assert text.startswith("default: 127.0.0.1 refuses the connection at port 1")


def test_findings_stand_in_columns_and_are_counted(nightmill, free_port):
    ran = nightmill("doctor", "--base-url", f"http://127.0.0.1:{free_port}/v1")
    assert ran.out.splitlines()[0].startswith("failed   server     no server at")
    assert ran.err == "nightmill: 1 failed, 1 to look at\n"
