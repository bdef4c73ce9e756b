"""The systemd units: valid for systemd, where it is installed, and for the command line of nightmill."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nightmill.errors import RequestError, SetupError
from nightmill.roles.registry import ROLE_NAMES
from nightmill.settings import Settings
from tests.deploy.parsing import ROOT, loaded, understood

UNITS = ROOT / "deploy/systemd"
SERVICES = ("nightmill.service", "nightmill-worker@.service")
INSTALLED = "/opt/nightmill/bin/nightmill"
SECTION = re.compile(r"^\[(\w+)\]$")


def read(name: str) -> dict[str, dict[str, list[str]]]:
    """Section -> key -> values: systemd allows a key to occur more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if header := SECTION.match(line):
            section = found.setdefault(header[1], {})
            continue
        key, _, value = line.partition("=")
        section.setdefault(key, []).append(value)
    return found


def service(name: str) -> dict[str, list[str]]:
    return read(name)["Service"]


def words(name: str) -> list[str]:
    [command] = service(name)["ExecStart"]
    program, *words = command.split()
    assert program == INSTALLED
    return words


def settings_of(*names: str) -> Settings:
    """The settings of a service with its drop-ins."""
    environment = dict(
        pair.split("=", 1)
        for name in names
        for line in service(name).get("Environment", [])
        for pair in line.split()
    )
    toml = (UNITS / "nightmill.toml").read_text()
    return loaded(
        environment, content=lambda path: toml if path.endswith(".toml") else "postgresql://db/nightmill"
    )


def test_command_lines_and_settings_are_valid():
    assert understood(words("nightmill.service"))["workers"] is None
    assert understood(words("nightmill-worker@.service"))["workers"] == 1
    for name in SERVICES:
        assert (
            settings_of(name).upstream.url
            == tomllib.loads((UNITS / "nightmill.toml").read_text())["upstream"]["url"]
        )
        assert str(settings_of(name).folder) == "/var/lib/" + service(name)["StateDirectory"][0]


def test_a_single_service_runs_every_role_and_in_a_fleet_only_the_api():
    alone = settings_of("nightmill.service")
    assert alone.is_embedded
    assert alone.worker.processes == 1
    fleet = settings_of("nightmill.service", "fleet.conf")
    assert not fleet.is_embedded
    assert fleet.worker.processes == 0


def test_the_worker_service_runs_every_other_role():
    roles = understood(words("nightmill-worker@.service"))["roles"]
    assert roles.split(",") == list(ROLE_NAMES)


@pytest.mark.parametrize("name", ["fleet.conf", "upstream-key.conf"])
def test_secrets_are_passed_as_systemd_credentials(name: str):
    [credential] = service(name)["LoadCredential"]
    label, path = credential.split(":")
    assert path.startswith("/etc/nightmill/")
    assert f"_FILE=%d/{label}" in service(name)["Environment"][0]


def test_both_services_have_the_same_restrictions():
    one, other = (service(name) for name in SERVICES)
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == {"ExecStart"}


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_waits_longer_than_a_drain(name: str):
    assert int(service(name)["TimeoutStopSec"][0]) > settings_of(name).api.drain_s + 5
    assert service(name)["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_restarted_except_after_a_setup_error(name: str):
    assert service(name)["Restart"] == ["on-failure"]
    codes = {int(code) for code in service(name)["RestartPreventExitStatus"][0].split()}
    assert codes == {SetupError.exit_code, RequestError.exit_code}


def test_the_target_groups_the_services():
    assert read("nightmill.target")["Unit"]["Wants"] == ["nightmill.service"]
    assert read("nightmill-worker@.service")["Install"]["WantedBy"] == ["nightmill.target"]
    for name in SERVICES:
        assert read(name)["Unit"]["PartOf"] == ["nightmill.target"]


@pytest.fixture
def analyze(tmp_path: Path) -> list[str]:
    """The command line of `systemd-analyze` for the installed units, with nightmill from this environment."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed here")
    for path in UNITS.iterdir():
        text = path.read_text().replace(INSTALLED, str(Path(sys.executable).with_name("nightmill")))
        (tmp_path / path.name).write_text(text)
    for name in SERVICES:
        (tmp_path / f"{name}.d").mkdir()
        for drop_in in tmp_path.glob("*.conf"):
            shutil.copy(drop_in, tmp_path / f"{name}.d")
    return [program, *(str(tmp_path / name.replace("@", "@1")) for name in (*SERVICES, "nightmill.target"))]


def test_systemd_analyze_verify_finds_no_error(analyze: list[str]):
    program, *units = analyze
    done = subprocess.run(
        [program, "verify", "--man=no", *units], check=False, capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "nightmill" in line]
    assert (done.returncode, ours) == (0, [])


def test_systemd_analyze_security_is_within_its_threshold(analyze: list[str]):
    program, unit, *_ = analyze
    asked = [program, "security", "--offline=true", "--threshold=20", unit]
    done = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd can't look at a unit that isn't loaded")
    assert done.returncode == 0, done.stdout.splitlines()[-1]
