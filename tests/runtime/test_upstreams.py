"""The choice of an upstream: `--upstream auto` beside a real nightmill, `--model` where memory is short."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill.runtime import llama, upstreams
from nightmill.runtime.storage import has_stored_upstreams
from nightmill.settings import load
from nightmill.upstream import find_local_servers
from tests.faults.served import serving

TINY_GGUF = Path(__file__).parents[1] / "tiny_gguf.py"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, str(TINY_GGUF), str(path)], check=True)
    return path


async def test_lines_in_flight_are_as_many_as_the_slots_that_fit_into_memory(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(llama, "available_bytes", lambda: 350 << 20)
    said: list[str] = []
    settings = load(flags={"model": {"path": str(model), "slots": 64}}, environment={})
    settings, [program] = await upstreams.choose_upstream(settings, say=said.append)
    slots = settings.upstream.concurrency
    assert 1 < slots < 64
    assert " ".join(program.arguments).startswith(f"--model {model} --slots {slots} --context 2048 ")
    [line] = said
    assert line.startswith(f"tiny.gguf answers {slots} at once and not 64, each with 2,048 tokens of context")


async def test_a_nightmill_is_never_taken_for_a_model_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    settings = load(flags={"upstream": {"url": "auto"}}, environment={})
    with serving(tmp_path) as served:
        servers = (("llama.cpp", served.port),)
        monkeypatch.setattr(upstreams, "find_local_servers", partial(find_local_servers, servers=servers))
        with pytest.raises(SetupError, match="found no model server"):
            await upstreams.choose_upstream(settings, say=said.append)
    [left_out] = said
    assert left_out.startswith(f"left out http://127.0.0.1:{served.port}/v1: that is a nightmill")


async def test_several_upstreams_are_used_as_they_are_named():
    urls = {"a": {"url": "http://a/v1"}, "b": {"url": "http://b/v1"}}
    settings = load(flags={"upstreams": urls}, environment={})
    assert await upstreams.choose_upstream(settings, say=pytest.fail) == (settings, [])
    emulating = load(flags={"upstreams": urls, "emulator": {"enabled": True}}, environment={})
    with pytest.raises(SetupError, match="name one kind of upstream"):
        await upstreams.choose_upstream(emulating, say=pytest.fail)


def test_a_server_starts_without_upstreams_of_its_own_when_some_were_added(tmp_path: Path):
    path = "/nightmill/v1/upstreams"
    box = {"name": "box", "url": "http://127.0.0.1:9/v1", "models": ["m"]}
    with serving(tmp_path, flags=("--upstream", "a=http://127.0.0.1:9/v1")) as served:
        assert served.send("POST", path, json.dumps(box).encode())[0] == 200
    with serving(tmp_path, flags=()) as served:
        status, _, upstreams_now = served.send("GET", path)
        assert (status, [each["name"] for each in upstreams_now["data"]]) == (200, ["box"])


async def test_without_any_upstream_the_error_names_the_ways_and_nothing_is_made(tmp_path: Path):
    folder = tmp_path / "data"
    settings = load(flags={"folder": str(folder)}, environment={})
    with pytest.raises(SetupError, match="there is no upstream to answer the lines; give one:"):
        await upstreams.choose_upstream(
            settings, say=pytest.fail, are_stored=partial(has_stored_upstreams, settings)
        )
    assert not folder.exists()


def test_the_address_of_the_server_itself_is_no_upstream():
    settings = load(flags={"upstream": {"url": "localhost:8080"}}, environment={})
    with pytest.raises(SetupError, match="http://localhost:8080 is the address of this server itself; name"):
        upstreams.refuse_own_address(settings)
    elsewhere = load(flags={"upstream": {"url": "localhost:8080"}, "api": {"port": 8081}}, environment={})
    upstreams.refuse_own_address(elsewhere)


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [({"headers": {"host": "x"}}, "upstream.headers: 'host'"), ({"tls_ca": "/no/such.pem"}, "TLS files")],
)
async def test_an_upstream_that_cannot_be_used_is_refused_before_a_process_is_started(upstream, reason):
    settings = load(flags={"upstream": {"url": "https://gpu:8000", **upstream}}, environment={})
    with pytest.raises(SetupError, match=reason):
        await upstreams.choose_upstream(settings, say=pytest.fail)


async def test_a_missing_model_file_is_said_before_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(llama, "find_spec", lambda _: None)
    settings = load(flags={"model": {"path": str(tmp_path / "no.gguf")}}, environment={})
    with pytest.raises(SetupError, match=r"there is no model file at .*no\.gguf"):
        await upstreams.choose_upstream(settings, say=pytest.fail)
