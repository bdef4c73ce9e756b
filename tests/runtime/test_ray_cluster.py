"""Which endpoint a Ray address names, and the error when no cluster answers."""

import json
import socket
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from nightmill.runtime.ray import cluster
from nightmill.runtime.ray.cluster import Cluster, ClusterLost
from nightmill.runtime.ray.launcher import fingerprint, worker_message
from nightmill.settings import (
    RaySettings,
    Settings,
    UpstreamSettings,
    load,
    with_own_secrets,
    without_secrets,
)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("ray://head.example.com", ("head.example.com", 10_001)),
        ("ray://head.example.com:7", ("head.example.com", 7)),
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("head.example.com", None),
        ("auto", None),
    ],
)
def test_an_address_names_an_endpoint(address: str, place: tuple[str, int] | None) -> None:
    assert cluster._endpoint(address) == place


def test_a_cluster_that_listens_on_loopback_only_is_recognized(listening: int) -> None:
    assert cluster._is_on_loopback(f"127.0.0.1:{listening}")
    assert cluster._is_on_loopback(f"localhost:{listening}")
    assert not cluster._is_on_loopback(f"10.0.0.1:{listening}")
    assert not cluster._is_on_loopback(f"ray://127.0.0.1:{listening}")
    assert not cluster._is_on_loopback("auto")


def test_an_address_without_a_cluster_is_an_error_at_once(listening: int) -> None:
    taken = Cluster(RaySettings(address="127.0.0.1:1"))
    with pytest.raises(ClusterLost, match=r"no Ray cluster answers at 127\.0\.0\.1:1 \(.+refused"):
        taken.connect()


def test_settings_that_workers_do_not_read_do_not_change_their_fingerprint() -> None:
    plain = Settings(store="postgresql://db/x")
    same = Settings.model_validate(
        {"store": "postgresql://db/x", "api": {"port": 1}, "ray": {"max_workers": 9}, "engine": "ray"}
    )
    other = Settings.model_validate({"store": "postgresql://db/x", "upstream": {"concurrency": 1}})
    assert fingerprint(worker_message(plain)) == fingerprint(worker_message(same))
    assert fingerprint(worker_message(plain)) != fingerprint(worker_message(other))


def test_secrets_may_come_from_the_environment_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {
        "store": "postgresql://user:hush@db/x",
        "upstream": {"url": "http://model/v1", "api_key": "hush"},
        "blobs": {"secret_access_key": "hush"},
    }
    message = without_secrets(load(flags=flags, environment={}))
    assert "hush" not in message
    monkeypatch.setenv("NIGHTMILL_STORE", "postgresql://node@db/x")
    monkeypatch.setenv("NIGHTMILL_UPSTREAM__API_KEY", "own")
    read = with_own_secrets(message)
    assert read.store == "postgresql://node@db/x"
    assert read.upstream.url == "http://model/v1"
    assert read.upstream.api_key is not None
    assert read.upstream.api_key.get_secret_value() == "own"


def test_secrets_in_a_list_of_sections_are_not_sent() -> None:
    class SettingsWithList(Settings):
        upstreams: tuple[UpstreamSettings, ...] = ()

    first = UpstreamSettings(url="http://model/v1", api_key=SecretStr("hush"))
    message = without_secrets(SettingsWithList(upstreams=(first,)))
    assert "hush" not in message
    assert json.loads(message)["upstreams"][0]["url"] == "http://model/v1"
