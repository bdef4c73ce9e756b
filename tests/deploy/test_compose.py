"""compose.yaml follows the specification, the settings of nightmill, and those of the other servers in it."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from nightmill.roles.registry import ROLE_NAMES, WORKER
from tests.deploy.parsing import ROOT, interpolated, loaded, understood

Document = dict[str, Any]
OURS = ("api", "worker", "keeper", "migrate")


def read(name: str) -> Document:
    """The file with its anchors and variables resolved."""
    document = yaml.safe_load((ROOT / name).read_text())
    text = interpolated(yaml.safe_dump(document, sort_keys=False), {"MODEL": "/models/tiny.gguf"})
    compose_spec.PyCompose.from_yaml(text).validate()
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def compose() -> Document:
    return read("compose.yaml")


@pytest.fixture(scope="module")
def services(compose: Document) -> Document:
    return compose["services"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of secrets, created as the guide says."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "deploy/compose/make-secrets", folder)
    subprocess.run([folder / "make-secrets"], check=True, timeout=30)
    return folder / "secrets"


def settings_of(service: Document, made: Path) -> Any:
    return loaded(service["environment"], content=lambda path: (made / Path(path).name).read_text())


def test_the_validator_finds_errors():
    for wrong in (
        "read_only: maybe",
        "imag: nightmill",
        "secrets: [nowhere]",
        "depends_on: {api: {condition: x}}",
    ):
        with pytest.raises(ValueError, match=r".+"):
            compose_spec.PyCompose.from_yaml(f"services:\n  api:\n    image: n\n    {wrong}\n").validate()


@pytest.mark.parametrize("name", ["compose.yaml", "deploy/compose/model.yaml"])
def test_the_file_follows_the_compose_specification(name: str):
    assert read(name)["services"]


@pytest.mark.parametrize("name", OURS)
def test_every_command_line_and_environment_is_valid(services: Document, made: Path, name: str):
    understood(services[name]["command"])
    settings = settings_of(services[name], made)
    assert (
        settings.store
        == f"postgresql://nightmill:{(made / 'postgres_password').read_text()}@postgres/nightmill"
    )
    assert settings.blobs.url is not None
    assert settings.blobs.secret_access_key is not None
    assert settings.blobs.secret_access_key.get_secret_value() == (made / "s3_secret_key").read_text()


def test_every_role_is_assigned_and_only_workers_send_lines(services: Document, made: Path):
    roles = {name: understood(services[name]["command"])["roles"] for name in ("worker", "keeper")}
    assert set(",".join(roles.values()).split(",")) == set(ROLE_NAMES)
    assert roles["worker"] == WORKER
    assert understood(services["api"]["command"])["workers"] == 0
    assert settings_of(services["worker"], made).emulator.enabled


def test_a_model_server_can_replace_the_emulator(services: Document, made: Path):
    over = read("deploy/compose/model.yaml")["services"]
    merged = services["worker"]["environment"] | over["worker"]["environment"]
    settings = settings_of({"environment": merged}, made)
    assert not settings.emulator.enabled
    upstream = over["upstream"]
    port = upstream["environment"]["LLAMA_ARG_PORT"]
    assert settings.upstream.url == f"http://upstream:{port}/v1"
    assert settings.upstream.concurrency == int(upstream["environment"]["LLAMA_ARG_N_PARALLEL"])
    assert f":{port}/health" in upstream["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", [*OURS, "postgres", "s3"])
def test_containers_can_write_only_where_needed(services: Document, name: str):
    service = services[name]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    if name != "postgres":  # the entry point of the image switches to its own user
        assert service["cap_drop"] == ["ALL"]
    assert "volumes" not in service or name in {"postgres", "s3"}


def test_secrets_are_passed_in_files_only(compose: Document, services: Document, made: Path):
    for name, secret in compose["secrets"].items():
        assert (made / Path(secret["file"]).name).exists(), name
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|STORE", name):
                assert value in [f"/run/secrets/{secret}" for secret in service["secrets"]], name


def test_secrets_are_created_once_and_readable_by_their_owner_only(made: Path):
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    before = {path.name: path.read_text() for path in made.iterdir()}
    subprocess.run([made.parent / "make-secrets"], check=True, timeout=30)
    assert {path.name: path.read_text() for path in made.iterdir()} == before
    assert len(set(before.values())) == len(before)


def test_git_ignores_the_secrets():
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/compose/secrets/store_url"],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    if not (ROOT / ".git").exists():
        pytest.skip("no git here")
    assert ignored.returncode == 0


def test_the_s3_server_matches_the_settings_of_nightmill(services: Document, made: Path):
    garage = tomllib.loads((ROOT / "deploy/compose/garage.toml").read_text())
    variables = dict(line.split("=", 1) for line in (made / "garage.env").read_text().splitlines())
    blobs = settings_of(services["worker"], made).blobs
    assert blobs.url.split("/")[2] == variables["GARAGE_DEFAULT_BUCKET"]
    assert blobs.region == garage["s3_api"]["s3_region"]
    assert blobs.endpoint == f"http://s3:{garage['s3_api']['api_bind_addr'].rsplit(':', 1)[1]}"
    assert blobs.access_key_id.get_secret_value() == variables["GARAGE_DEFAULT_ACCESS_KEY"]
    assert re.fullmatch("GK[0-9a-f]{24,}", variables["GARAGE_DEFAULT_ACCESS_KEY"])
    assert re.fullmatch("[0-9a-f]{64}", variables["GARAGE_DEFAULT_SECRET_KEY"])
    assert garage["metadata_fsync"] is garage["data_fsync"] is True
    mounted = {volume.split(":")[1] for volume in services["s3"]["volumes"]}
    assert {garage["metadata_dir"], garage["data_dir"], "/etc/garage.toml"} == mounted


def test_services_start_in_the_order_of_their_dependencies(services: Document):
    for service in services.values():
        for name, wanted in service.get("depends_on", {}).items():
            match wanted["condition"]:
                case "service_healthy":
                    assert services[name]["healthcheck"]["test"]
                case "service_completed_successfully":
                    assert services[name]["restart"] == "no"
                case other:
                    pytest.fail(f"waiting for {name} to be {other} proves nothing")
    for name in ("api", "worker", "keeper"):
        assert set(services[name]["depends_on"]) == {"migrate", "s3"}
    assert set(services["migrate"]["depends_on"]) == {"postgres"}


def test_a_stop_leaves_time_to_drain(services: Document, made: Path):
    for name in ("api", "worker", "keeper"):
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > settings_of(services[name], made).api.drain_s + 5


def test_only_the_api_is_published_and_only_on_loopback(services: Document):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8080:8080"]}


def test_volumes_are_named_and_used(compose: Document, services: Document):
    used = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert used == set(compose["volumes"])


def test_images_are_pinned(services: Document):
    for service in services.values():
        assert re.search(r":[^:/]*\d", service["image"]), service["image"]
    assert os.access(ROOT / "deploy/compose/make-secrets", os.X_OK)
