"""The dependency audit never passes when a look-up did not happen."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(*dependencies):
    return json.dumps({"dependencies": list(dependencies), "fixes": []})


FINE = {"name": "one", "version": "1", "vulns": []}
SKIPPED = {"name": "two", "skip_reason": "Dependency not found on PyPI and could not be audited: two (2)"}
VULNERABLE = {"name": "three", "version": "3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("stdout", "code", "words"),
    [
        (answer(FINE), 0, "none known"),
        (answer(FINE, SKIPPED), 2, "1 of 2 dependencies were not looked up"),
        (answer(FINE, SKIPPED, VULNERABLE), 1, "three 3: PYSEC-1, mended in 3.1"),
        (answer(), 2, "0 of 0"),
        ("", 2, "did not answer: no route"),
        ("{}", 2, "did not answer: no route"),
    ],
)
def test_the_audit_passes_only_if_all_dependencies_were_looked_up(audit, stdout, code, words):
    found, reason = audit.verdict(stdout, "trace\nno route\n")
    assert found == code
    assert words in reason


def test_an_unreachable_service_is_reported(audit, capsys, monkeypatch):
    def unknown(*_):
        raise audit.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(audit.socket, "getaddrinfo", unknown)
    assert audit.main() == 2
    assert capsys.readouterr().out == (
        "AUDIT NOT DONE: api.osv.dev can't be reached from here: Name or service not known\n"
    )
