"""Mixed batches over a real vLLM and real llama.cpp servers at once, each of which is killed under load.

| upstream | engine | models |
|---|---|---|
| `vllm` | vLLM | `small`, also as `gpt-4o-mini` |
| `llama` | llama.cpp | `small`, also as `gpt-4o-mini` |
| `other` | llama.cpp | `other`, also as `gpt-4o` |
| `texts` | llama.cpp | `texts` for embeddings, also as `text-embedding-3-small` |
"""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import CHAT, Server, ended, serving, until
from tests.engines.conftest import LINE_S, chat, created, input_file
from tests.engines.servers import Llama, ModelServer, Vllm, running

pytestmark = pytest.mark.timeout(7_200)

EMBEDDINGS = "/v1/embeddings"
TINY_GGUF = Path(__file__).parents[1] / "tiny_gguf.py"
CHAT_MODELS = {"small": "small", "gpt-4o-mini": "small", "other": "other", "gpt-4o": "other"}
"""The models that lines ask for, and those that answer."""
TEXT_MODELS = {"texts": "texts", "text-embedding-3-small": "texts"}
SETTINGS = """
[limits]
models_per_file = 16

[worker]
beat_s = 0.1

[upstream]
timeout_s = 1800

[[upstreams]]
name = "vllm"
url = "{vllm}"
aliases = {{ "gpt-4o-mini" = "small" }}

[[upstreams]]
name = "llama"
url = "{llama}"
aliases = {{ "gpt-4o-mini" = "small" }}

[[upstreams]]
name = "other"
url = "{other}"
aliases = {{ "gpt-4o" = "other" }}

[[upstreams]]
name = "texts"
url = "{texts}"
aliases = {{ "text-embedding-3-small" = "texts" }}
endpoints = ["/v1/embeddings"]
"""

Engines = dict[str, ModelServer]


@pytest.fixture(scope="module")
def engines(
    vllm: Vllm, gguf: Path, other_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("engines")
    models = {name: folder / f"{name}.gguf" for name in ("small", "other", "texts")}
    models["small"].symlink_to(gguf)
    models["other"].symlink_to(other_gguf)
    subprocess.run([sys.executable, str(TINY_GGUF), str(models["texts"]), "embeds"], check=True, timeout=300)
    llamas: Engines = {
        name: Llama(folder / f"{name}.log", models[model])
        for name, model in (("llama", "small"), ("other", "other"), ("texts", "texts"))
    }
    with running(*llamas.values()):
        yield {"vllm": vllm, **llamas}


@contextmanager
def mixing(folder: Path, engines: Engines) -> Iterator[Server]:
    """A server with all engines as its upstreams."""
    settings = folder / "nightmill.toml"
    settings.write_text(SETTINGS.format_map({name: engine.url for name, engine in engines.items()}))
    with serving(folder, "--config", str(settings)) as server:
        yield server


class Load:
    """Two batches at once: chat lines that ask for four models in turn, and embeddings that ask for two."""

    def __init__(
        self, server: Server, *, lines: int, tokens: int = 12, models: Sequence[str] = tuple(CHAT_MODELS)
    ) -> None:
        self._server = server
        self._asked = {
            CHAT: [models[number % len(models)] for number in range(lines)],
            EMBEDDINGS: [list(TEXT_MODELS)[number % len(TEXT_MODELS)] for number in range(60 * lines)],
        }
        bodies: dict[str, list[dict[str, Any]]] = {
            CHAT: [
                chat(f"Name {number} rivers.", tokens=tokens) | {"model": model}
                for number, model in enumerate(self._asked[CHAT])
            ],
            EMBEDDINGS: [
                {"model": model, "input": f"water {number}"}
                for number, model in enumerate(self._asked[EMBEDDINGS])
            ],
        }
        self._ids = {
            endpoint: created(server, input_file(sent, url=endpoint), endpoint=endpoint)
            for endpoint, sent in bodies.items()
        }

    def answered(self, endpoint: str = CHAT) -> int:
        return self._server.client().batches.retrieve(self._ids[endpoint]).request_counts.completed

    def is_done(self, endpoint: str = CHAT) -> bool:
        return self.answered(endpoint) == len(self._asked[endpoint])

    def assert_all_answered(self) -> list[dict[str, Any]]:
        """Every line has exactly one answer of the model that it asked for; returns the chat answers."""
        bodies: dict[str, list[dict[str, Any]]] = {}
        for endpoint, answering in ((CHAT, CHAT_MODELS), (EMBEDDINGS, TEXT_MODELS)):
            asked = self._asked[endpoint]
            batch = ended(self._server.client(), self._ids[endpoint], timeout_s=LINE_S)
            assert batch.status == "completed"
            assert batch.request_counts.to_dict() == {
                "total": len(asked),
                "completed": len(asked),
                "failed": 0,
            }
            assert batch.error_file_id is None
            rows = self._server.rows(batch.output_file_id)
            assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(len(asked))]
            bodies[endpoint] = [row["response"]["body"] for row in rows]
            assert [body["model"] for body in bodies[endpoint]] == [answering[model] for model in asked]
        assert all(body["usage"]["completion_tokens"] > 0 for body in bodies[CHAT])
        assert all(len(body["data"][0]["embedding"]) > 1 for body in bodies[EMBEDDINGS])
        return bodies[CHAT]


def upstreams_command(server: Server, *words: str) -> str:
    """What `nightmill upstreams` prints."""
    address = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "unused"}
    done = subprocess.run(
        [sys.executable, "-m", "nightmill", "upstreams", *words],
        env=os.environ | address,
        capture_output=True,
        check=True,
        text=True,
        timeout=300,
    )
    return done.stdout


def live(server: Server, name: str) -> dict[str, Any]:
    """What the workers report of an upstream; empty before their first report."""
    document: dict[str, Any] = server.send("GET", f"/nightmill/v1/upstreams/{name}").json()
    return document["live"] or {}


def is_held(server: Server, name: str) -> bool:
    return any(model["held"] for model in live(server, name).get("per_model", ()))


def answered_by(bodies: Sequence[dict[str, Any]]) -> Counter[str]:
    """The chat answers of each engine and model; only llama.cpp adds its timings."""
    engine = {True: "llama.cpp", False: "vLLM"}
    return Counter(f"{engine['timings' in body]} {body['model']}" for body in bodies)


def test_a_mixed_load_is_answered_by_every_engine_that_has_its_model(engines: Engines, tmp_path: Path):
    with mixing(tmp_path, engines) as server:
        load = Load(server, lines=120)
        until(lambda: load.answered() > 60, timeout_s=LINE_S)
        listed = {model.id for model in server.client().models.list()}
        shown = upstreams_command(server)
        bodies = load.assert_all_answered()
    by_engine = answered_by(bodies)
    print("\n", shown, by_engine)
    assert listed >= set(CHAT_MODELS) | set(TEXT_MODELS)
    assert set(by_engine) == {"vLLM small", "llama.cpp small", "llama.cpp other"}
    assert by_engine["llama.cpp other"] == 60
    assert all(name in shown for name in engines)


@pytest.mark.parametrize("name", ["other", "texts", "llama", "vllm"])
def test_an_engine_that_is_killed_and_started_again_costs_no_line(
    name: str, engines: Engines, tmp_path: Path
):
    """`small` has many lines where one of its two engines dies, so that the other does not answer all."""
    endpoint = EMBEDDINGS if name == "texts" else CHAT
    models = ["small", "gpt-4o-mini", "small", "gpt-4o-mini", "small", "other", "gpt-4o-mini", "gpt-4o"]
    with mixing(tmp_path, engines) as server:
        load = (
            Load(server, lines=240, models=models) if name in ("llama", "vllm") else Load(server, lines=120)
        )
        until(
            lambda: load.answered(endpoint) > 20 and live(server, name).get("in_flight", 0) > 0,
            timeout_s=LINE_S,
        )
        engines[name].kill()
        assert not load.is_done(endpoint), "the batch was answered before the server was killed"
        until(lambda: is_held(server, name), timeout_s=LINE_S)
        until(lambda: "held: " in upstreams_command(server), timeout_s=LINE_S)
        others = [other for other in engines if other != name]
        assert not any(is_held(server, other) for other in others), "one upstream costs only its own share"
        engines[name].start()
        until(lambda: not is_held(server, name), timeout_s=LINE_S)
        load.assert_all_answered()


def test_lines_wait_for_a_paused_upstream_and_leave_a_drained_one(engines: Engines, tmp_path: Path):
    with mixing(tmp_path, engines) as server:
        load = Load(server, lines=120)
        until(lambda: load.answered() > 20, timeout_s=LINE_S)
        upstreams_command(server, "pause", "other")
        upstreams_command(server, "drain", "vllm")
        for name in ("other", "vllm"):
            until(lambda name=name: live(server, name)["in_flight"] == 0, timeout_s=LINE_S)
        # Only lines for `small` can be answered now, all by llama.cpp; those for `other` wait.
        until(lambda: live(server, "llama")["in_flight"] == 0, timeout_s=LINE_S)
        waiting = load.answered()
        assert 60 <= waiting < 120
        shown = upstreams_command(server)
        assert "paused" in shown
        assert "draining" in shown
        upstreams_command(server, "resume", "other")
        upstreams_command(server, "resume", "vllm")
        load.assert_all_answered()
        assert "paused" not in upstreams_command(server)


def test_two_engines_that_are_killed_at_once_cost_no_line(engines: Engines, tmp_path: Path):
    """A batch that loses two engines at once ends with every line, after both have come back."""
    with mixing(tmp_path, engines) as server:
        load = Load(server, lines=120)
        until(lambda: load.answered() > 20, timeout_s=LINE_S)
        lost = [engines["llama"], engines["other"]]
        for engine in lost:
            engine.kill()
        until(lambda: is_held(server, "llama") and is_held(server, "other"), timeout_s=LINE_S)
        starting = [threading.Thread(target=engine.start) for engine in lost]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        load.assert_all_answered()
