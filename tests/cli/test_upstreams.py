"""`nightmill upstreams`: the words of the HTTP API, tables of 80 columns, and keys from files only."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from nightmill.cli.assignments import assigned
from nightmill.core.engine_gauges import EngineGauges
from nightmill.core.upstream_report import ModelHold, ModelReport, UpstreamReport
from nightmill.errors import RequestError
from nightmill.ids import WorkerId
from nightmill.settings.effective import effective_of
from tests.api.conftest import serving

URL = "http://gpu-a.example:8000/v1"
ADVICE = "the queue stays empty at 64 running: raise --max-num-seqs"


@pytest.fixture
def server(tmp_path, monkeypatch):
    configured = [{"name": "gpu-a", "url": URL, "models": ["qwen3-8b", "bge-m3"]}]
    with serving(tmp_path, settings={"upstreams": configured}) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        yield running


class ModelServer(BaseHTTPRequestHandler):
    """Has one model, for the holder of the key."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "qwen3-8b", "object": "model"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"object": "chat.completion", "choices": [{"index": 0}]})

    def answer(self, document):
        is_known = self.path in ("/v1/models", "/v1/chat/completions")
        status = 404 if not is_known else 200 if self.headers["Authorization"] == "Bearer sk-right" else 401
        body = json.dumps(document if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def model_url():
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()
        thread.join()


@pytest.fixture
def upstreams(nightmill, server):
    def run(*words):
        return nightmill("upstreams", *words)

    return run


def settings_of(server, name):
    stored = server.do(server.context.store.upstreams.settings())
    return next(u for u in effective_of(server.context.settings, stored) if u.name == name).settings


def report(server, worker="w", **fields):
    made = UpstreamReport(**{"upstream": "gpu-a", "at": 100.0, **fields})
    documents = {made.upstream: msgspec.json.encode(made).decode()}
    server.do(server.context.store.upstreams.report(WorkerId(worker), documents))


def test_the_list_says_how_much_is_in_flight_and_why(server, upstreams):
    held = ModelHold("401: wrong key or no access to this model for the project", since=90.0)
    report(
        server,
        in_flight=45,
        per_model=(
            ModelReport("qwen3-8b", 64, "hold: plateau", ADVICE, 40),
            ModelReport("an-embedding-model-with-a-long-name", 8, None, None, 5),
            ModelReport("bge-m3", 4, "cut: refused", held=held),
        ),
    )
    upstreams("add", "box", "http://box.example:11434/v1", "models=a,b,c")
    shown = upstreams()
    assert shown.code == 0
    assert shown.out.splitlines() == [
        "NAME   STATE   MODEL                   IN FLIGHT  WHY",
        "gpu-a  active  an-embedding-model-wi…  5/8        fixed by the settings",
        "               bge-m3                  0/4        held: 401: wrong key or no ac…",
        "               qwen3-8b                40/64      hold: plateau",
        "box    active  a +2                    -          no worker reports it",
    ]
    assert max(map(len, shown.out.splitlines())) == 80
    assert shown.err == f"gpu-a: {ADVICE}\n"


def test_a_list_as_json_has_one_line_for_each_upstream(server, upstreams):
    upstreams("add", "box", "http://box.example:11434/v1")
    lines = upstreams("list", "--json").out.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["gpu-a", "box"]


def test_one_upstream_is_shown_with_its_settings_and_its_reports(server, upstreams):
    gauges = EngineGauges("vllm", 60, 3, 0.8, None, 1)
    model = ModelReport("qwen3-8b", 64, "hold: plateau", ADVICE, 40)
    report(server, in_flight=40, waiting=7, per_model=(model,), gauges=gauges)
    shown = upstreams("show", "gpu-a").out
    fields = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in shown.splitlines()}
    assert fields["url"] == URL
    assert fields["models"] == "qwen3-8b, bge-m3"
    assert (fields["in flight"], fields["waiting"]) == ("40", "7")
    assert (fields["engine"], fields["engine running"]) == ("vllm", "60")
    assert "qwen3-8b: 40/64 in flight, hold: plateau" in shown
    assert "  A higher limit brought no more goodput" in shown
    assert f"  {ADVICE}" in shown
    assert upstreams("show", "gpu-a", "--json").json["name"] == "gpu-a"


def test_settings_that_are_not_set_are_left_out_of_what_is_shown(server, upstreams):
    upstreams("set", "gpu-a", "aliases.small=bge-m3", "weight=0.5", "tls_verify=false")
    fields = dict(line.split("  ", 1) for line in upstreams("show", "gpu-a").out.splitlines())
    shown = {name: value.strip() for name, value in fields.items()}
    assert (shown["aliases"], shown["weight"], shown["tls_verify"]) == ("small=bge-m3", "0.5", "no")
    assert not {"headers", "endpoints", "tls_ca", "api_key"} & set(shown)


def test_an_upstream_is_added_changed_and_removed(server, upstreams):
    added = upstreams("add", "box", "http://box.example:11434/v1", "weight=0", "aliases.gpt-3.5-turbo=a")
    assert added.out == "box is added\n"
    settings = settings_of(server, "box")
    assert (settings.weight, settings.aliases) == (0, {"gpt-3.5-turbo": "a"})
    assert upstreams("set", "box", "weight=", "timeout_s=30", "models=a,b").out == "box is changed\n"
    settings = settings_of(server, "box")
    assert (settings.weight, settings.timeout_s, settings.models) == (1, 30, ("a", "b"))
    assert upstreams("set", "box", "aliases.gpt-3.5-turbo=").code == 0
    assert settings_of(server, "box").aliases == {}
    assert upstreams("remove", "box").out == "box is removed\n"
    assert "box" not in upstreams().out


@pytest.mark.parametrize(
    ("word", "said", "state"),
    [
        ("pause", "gpu-a is paused", "paused"),
        ("drain", "gpu-a drains; see its attempts in flight with: nightmill upstreams", "draining"),
        ("resume", "gpu-a is active", "active"),
        ("reset", "gpu-a is as in the settings file", "active"),
    ],
)
def test_the_state_is_changed_by_one_word(server, upstreams, word, said, state):
    assert upstreams(word, "gpu-a").out == f"{said}\n"
    assert upstreams("show", "gpu-a", "--json").json["state"] == state


def test_an_added_upstream_is_removed_by_a_reset(server, upstreams):
    upstreams("add", "box", "http://box.example/v1")
    assert upstreams("reset", "box").out == "box is removed\n"


def test_a_key_is_read_from_a_file_or_from_standard_input(server, upstreams, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("sk-from-a-file\n")
    (tmp_path / "team").write_text("secret-team\n")
    words = ("--key-file", tmp_path / "key", f"headers.X-Team=@{tmp_path / 'team'}")
    assert upstreams("add", "box", "http://box.example/v1", *words).code == 0
    settings = settings_of(server, "box")
    assert settings.api_key.get_secret_value() == "sk-from-a-file"
    assert settings.headers == {"X-Team": "secret-team"}
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-from-stdin\n"))
    assert upstreams("set", "box", "--key-file", "-").code == 0
    assert settings_of(server, "box").api_key.get_secret_value() == "sk-from-stdin"
    shown = upstreams("show", "box").out + upstreams("show", "box", "--json").out
    assert "sk-from" not in shown
    assert "secret-team" not in shown
    assert upstreams("set", "box", "api_key=").code == 0
    assert settings_of(server, "box").api_key is None


def test_a_key_in_plain_text_is_refused_and_not_repeated(server, upstreams):
    refused = upstreams("set", "gpu-a", "api_key=sk-plain")
    assert refused.code == 2
    assert "use --key-file FILE" in refused.err
    assert "sk-plain" not in refused.err


def test_mistakes_end_with_one_line_that_says_what_is_wrong(server, upstreams, tmp_path):
    (tmp_path / "empty").write_text("\n")
    for words, said in (
        (("show", "nope"), "There is no upstream 'nope'. The names are: 'gpu-a'."),
        (("show", "gpu_a"), "There is no upstream 'gpu_a'. Did you mean 'gpu-a'?"),
        (("set", "gpu-a", "wieght=1"), "Unknown parameter: 'wieght'. Did you mean 'weight'?"),
        (("set", "gpu-a"), "name what to change, such as weight=0 or --key-file FILE"),
        (("set", "gpu-a", "weight"), "expected FIELD=VALUE and got 'weight'"),
        (("set", "gpu-a", "aliases=x"), "expected aliases.NAME=VALUE and got 'aliases='"),
        (("set", "gpu-a", "--key-file", "nowhere"), "nowhere can't be read: No such file or directory"),
        (("set", "gpu-a", "--key-file", "empty"), "empty is empty; put the value there"),
        (("add", "gpu-a", URL), "There is an upstream 'gpu-a' already; change that one."),
    ):
        refused = upstreams(*words)
        assert (refused.code, refused.err) == (2, f"nightmill: {said}\n"), words


def test_values_become_json_by_the_kind_of_their_field():
    words = ["weight=0.5", "tls_verify=false", "models=1,b", "aliases.a=8", "concurrency=auto", "url="]
    assert assigned(words) == {
        "weight": 0.5,
        "tls_verify": False,
        "models": ["1", "b"],
        "aliases": {"a": "8"},
        "concurrency": "auto",
        "url": None,
    }
    with pytest.raises(RequestError):
        assigned(["weight.x=1"])


def test_a_trial_of_an_upstream_says_what_is_wrong_and_what_works(server, upstreams, model_url, tmp_path):
    upstreams("add", "box", model_url)
    wrong = upstreams("test", "box")
    assert wrong.code == 78
    assert wrong.out.splitlines()[-1].startswith("failed  models      ")
    assert "401" in wrong.out
    assert wrong.err == "box cannot be used as it is\n"
    (tmp_path / "key").write_text("sk-right")
    upstreams("set", "box", "--key-file", tmp_path / "key")
    right = upstreams("test", "box")
    assert (right.code, right.err) == (0, "box can be used\n")
    assert right.out.splitlines()[-1] == "ok      request     qwen3-8b answers /v1/chat/completions."
    document = upstreams("test", "box", "--json").json
    assert (document["object"], document["name"], document["is_usable"]) == ("upstream.test", "box", True)
    assert "sk-right" not in right.out + json.dumps(document)


def test_a_url_is_tried_without_a_server(nightmill, model_url, tmp_path):
    (tmp_path / "key").write_text("sk-right")
    tried = nightmill("upstreams", "test", "--url", model_url, "--key-file", tmp_path / "key")
    assert (tried.code, tried.err) == (0, f"{model_url} can be used\n")
    with_model = ("--model", "no-such-model")
    assert nightmill("upstreams", "test", "--url", model_url, *with_model).code == 78
    refused = nightmill("upstreams", "test", "--url", "http://127.0.0.1:1/v1", "--json")
    assert (refused.code, refused.json["is_usable"]) == (78, False)


def test_a_trial_needs_a_name_or_a_url(upstreams):
    for words in ((), ("gpu-a", "--url", URL), ("gpu-a", "--model", "m"), ("gpu-a", "--key-file", "k")):
        assert upstreams("test", *words).code == 2, words
