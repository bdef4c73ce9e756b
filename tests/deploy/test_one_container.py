"""The compose file of docs/howto/one-container.md: valid, short, and in agreement with the image."""

import re
from typing import Any

import compose_spec
import pytest
import yaml

from nightmill.settings import Settings
from tests.deploy.parsing import ROOT, understood

PAGE = ROOT / "docs/howto/one-container.md"
MOST_LINES = 10


@pytest.fixture(scope="module")
def text() -> str:
    [block] = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture(scope="module")
def service(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)["services"]["nightmill"]


def test_the_file_follows_the_specification_and_is_short(text: str):
    # Docker's name for the address of the host; the library knows numbers only.
    compose_spec.PyCompose.from_yaml(text.replace("host-gateway", "172.17.0.1")).validate()
    assert len(text.splitlines()) <= MOST_LINES


def test_the_server_is_started_with_flags_that_it_has(service: dict[str, Any]):
    assert understood(service["command"])["upstream"] == ["http://host.docker.internal:11434/v1"]
    assert "host.docker.internal:host-gateway" in service["extra_hosts"]


def test_state_is_in_a_volume_where_the_image_keeps_it(text: str, service: dict[str, Any]):
    [volume] = service["volumes"]
    name, _, path = volume.partition(":")
    assert name in yaml.safe_load(text)["volumes"]
    assert f"NIGHTMILL_FOLDER={path}" in (ROOT / "Dockerfile").read_text()


def test_only_this_machine_reaches_the_port_of_the_image(service: dict[str, Any]):
    [port] = service["ports"]
    host, _, inside = port.rpartition(":")
    assert host == "127.0.0.1:8080"
    assert f"NIGHTMILL_API__PORT={inside}" in (ROOT / "Dockerfile").read_text()


def test_a_stop_waits_for_longer_than_the_drain(service: dict[str, Any]):
    assert float(service["stop_grace_period"].removesuffix("s")) > Settings().api.drain_s
