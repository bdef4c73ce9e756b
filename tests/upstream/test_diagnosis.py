"""What a diagnosis says about servers that work, that are misconfigured, or that are no model servers."""

import asyncio
import json

import pytest

from nightmill.core.outcome import Unreachable
from nightmill.settings import UpstreamSettings
from nightmill.upstream.advice import advice_on_silence
from nightmill.upstream.diagnosis import Diagnosis, Step, diagnose
from tests.upstream.conftest import CERTIFICATES

KEY = "sk-very-secret-key"
SAID = "the server said this sentence"
CHAT = b'{"object":"chat.completion","choices":[{"index":0}]}'
EMBEDDING = b'{"object":"list","data":[{"index":0}]}'


def listing(*models):
    return json.dumps({"object": "list", "data": [{"id": model} for model in models]}).encode()


def error(code=None):
    return json.dumps({"error": {"message": SAID, "type": "some_error", "code": code}}).encode()


class Model:
    """Answers by path, and records the paths. A path without an answer gets a 404 page."""

    def __init__(self, words):
        self._words = words
        self.answers = {}
        self.paths = []
        self.keys = set()
        self._server = None

    def says(self, path, body, status=200):
        self.answers[path] = (body, status)

    async def start(self, tls=None):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/v1"

    async def stop(self):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode("latin-1").split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (row.partition(":") for row in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = line.split()[1]
                self.paths.append(path)
                self.keys.add(headers.get("authorization"))
                named = json.loads(body)["model"] if body else ""
                said, status = self.answers.get((path, named)) or self.answers.get(
                    path, (b"<html>" + SAID.encode(), 404)
                )
                writer.write(self._words.answer(said, status=b"%d Whatever" % status))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def model(words):
    server = Model(words)
    await server.start()
    server.says("/v1/models", listing("a", "b"))
    server.says("/v1/chat/completions", CHAT)
    yield server
    await server.stop()


@pytest.fixture
def check(transport):
    """Diagnoses with a key, and looks for texts that must not be in any step."""

    async def run(url, *, models=(), endpoints=(), timeout_s=5.0, **settings):
        settings = {"api_key": KEY, "connect_timeout_s": 0.5, **settings}
        found = await diagnose(
            UpstreamSettings(transport=transport, **settings),
            url=url,
            models=models,
            endpoints=endpoints,
            timeout_s=timeout_s,
        )
        for step in found.steps:
            assert step.text.endswith(".")
            assert KEY not in step.text
            assert SAID not in step.text
        return found

    return run


def last(found: Diagnosis):
    """The text of the step at which an upstream that can't be used failed."""
    assert not found.is_usable
    assert not found.steps[-1].is_ok
    return found.steps[-1].name, found.steps[-1].text


# --- servers that work ------------------------------------------------------------------------------


async def test_a_server_that_works_passes_every_step(model, check):
    found = await check(model.url)
    assert found == Diagnosis(
        is_usable=True,
        steps=(
            Step("settings", True, f"The base URL is {model.url}."),
            Step("connection", True, "The server answers."),
            Step("models", True, "The server lists 2 models: a, b."),
            Step("request", True, "a answers /v1/chat/completions."),
        ),
    )
    assert model.paths == ["/v1/models", "/version", "/v1/chat/completions"]


async def test_every_configured_model_is_asked(model, check):
    found = await check(model.url, models=["b", "a", "*"])
    assert [step.text for step in found.steps[3:]] == [
        "b answers /v1/chat/completions.",
        "a answers /v1/chat/completions.",
    ]


async def test_no_more_than_a_few_models_are_asked(model, check):
    found = await check(model.url, models=[f"m{number}" for number in range(10)])
    assert found.is_usable
    assert found.steps[-1] == Step("request", True, "2 more models were not asked.")
    assert model.paths.count("/v1/chat/completions") == 8


async def test_a_model_that_is_not_listed_may_answer(model, check):
    found = await check(model.url, models=["c"])
    assert found.is_usable
    assert found.steps[-1].text.endswith("though the list of models does not name it.")


async def test_a_server_without_a_list_is_usable_if_the_models_of_the_settings_answer(model, check):
    model.says("/v1/models", error(), 404)
    found = await check(model.url, models=["a"])
    assert found.is_usable
    assert [step.is_ok for step in found.steps] == [True, True, False, True]


async def test_an_embedding_model_is_found_by_its_endpoint(model, check):
    model.says("/v1/chat/completions", error(), 400)
    model.says("/v1/embeddings", EMBEDDING)
    found = await check(model.url)
    assert found.is_usable
    assert found.steps[-1].text.endswith("not /v1/chat/completions: it is an embedding model.")


async def test_a_model_without_a_chat_template_is_usable_for_completions(model, check):
    model.says("/v1/chat/completions", error(), 400)
    model.says("/v1/completions", CHAT)
    found = await check(model.url)
    assert found.is_usable
    assert found.steps[-1].text == "a answers /v1/completions, not /v1/chat/completions."


async def test_a_model_that_refuses_a_parameter_of_the_cheap_request_answers(model, check):
    model.says("/v1/chat/completions", error("unsupported_parameter"), 400)
    assert (await check(model.url)).is_usable


async def test_endpoints_without_a_cheap_request_are_not_asked(model, check):
    found = await check(model.url, endpoints=["/v1/videos"])
    assert found.is_usable
    assert "not asked" in found.steps[-1].text
    assert "/v1/videos" not in model.paths


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["ftp://h/v1", "http://user:pw@h/v1", "http://[::1/v1", "http://h/#x"])
async def test_a_url_that_can_not_be_used(check, url):
    name, text = last(await check(url))
    assert name == "settings"
    assert "upstream.url" in text


async def test_a_key_in_the_query_of_the_url_is_not_shown(model, check):
    model.says(f"/v1/models?key={KEY}", b"<html>")
    name, _ = last(await check(f"{model.url}?key={KEY}"))
    assert name == "models"


# --- connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://no-such-host.invalid/v1", "The host name no-such-host.invalid can't be looked up"),
        ("http://127.0.0.1:1/v1", "refuses the connection at port 1: start the server"),
        ("https://127.0.0.1:1/v1", "refuses the connection at port 1: start the server"),
    ],
)
async def test_there_is_no_server(check, url, part):
    name, text = last(await check(url))
    assert name == "connection"
    assert part in text


async def test_a_server_that_never_answers(rogue, check, words):
    rogue.always = (words.HANG,)
    assert "gives no answer within 0.2 s" in last(await check(rogue.url, timeout_s=0.2))[1]


async def test_another_service_at_the_port(rogue, check, words):
    rogue.always = (b"SSH-2.0-OpenSSH\r\n", words.CLOSE)
    name, text = last(await check(rogue.url))
    assert name == "connection"
    assert f"See whether another service listens at port {rogue.port}." in text


async def test_an_answer_without_an_end(rogue, check, words):
    rogue.always = (words.answer(b"x" * (5 << 20)),)
    assert "is longer than" in last(await check(rogue.url))[1]


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("its TLS certificate is not trusted: certificate is not yet valid", "check the clocks"),
        ("no connection within 10 s", "h can't be reached at port 80: no connection within 10 s."),
        ("no connection: No route to host", "Check host, port and firewall."),
    ],
)
def test_connections_that_a_test_can_not_make_fail(reason, part):
    assert part in advice_on_silence(Unreachable(reason), host="h", port=80)


async def test_plain_http_behind_https(model, check):
    name, text = last(await check(model.url.replace("http:", "https:")))
    assert (name, text) == ("connection", "The server speaks plain HTTP: use http:// in url.")
    assert model.keys == {None}


@pytest.mark.parametrize("name", ["localhost", "elsewhere"])
async def test_tls_behind_http(words, check, server_tls, name):
    server = Model(words)
    await server.start(server_tls(name))
    try:
        found = await check(server.url.replace("https:", "http:"))
    finally:
        await server.stop()
    assert last(found) == ("connection", "The server expects TLS: use https:// in url.")
    assert server.keys == {None}


@pytest.mark.parametrize(
    ("name", "authority", "part"),
    [
        ("localhost", None, "Add the authority that issued it"),
        ("expired", "expired", "has expired: renew it"),
        ("elsewhere", "authority", "is not for 127.0.0.1"),
    ],
)
async def test_certificates_that_are_not_trusted(
    words, check, server_tls, monkeypatch, name, authority, part
):
    if authority is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / f"{authority}.pem"))
    server = Model(words)
    await server.start(server_tls(name))
    try:
        found = await check(server.url)
        unchecked = await check(server.url, tls_verify=False)
    finally:
        await server.stop()
    assert last(found)[0] == "connection"
    assert part in last(found)[1]
    assert unchecked.steps[1].is_ok


async def test_a_trusted_certificate(words, check, server_tls, trusted):
    server = Model(words)
    await server.start(server_tls("localhost"))
    try:
        found = await check(server.url)
    finally:
        await server.stop()
    assert found.steps[1] == Step(
        "connection", True, "The server answers over TLS with a trusted certificate."
    )


# --- the list of models -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "part"),
    [
        (301, None, "redirects are not followed"),
        (401, "invalid_api_key", "refuses the key (401 invalid_api_key): check api_key"),
        (403, None, "what the key may use"),
        (402, None, "has no credit left"),
        (429, "insufficient_quota", "has no credit left (429 insufficient_quota)"),
        (429, None, "limits the rate"),
        (503, None, "is starting or has too much to do"),
        (504, None, "in time"),
        (400, None, "refuses the request"),
        (500, "engine_dead", "fails (500 engine_dead): its log has the reason"),
    ],
)
async def test_a_server_that_refuses_to_list_its_models(model, check, status, code, part):
    model.says("/v1/models", error(code), status)
    name, text = last(await check(model.url, models=["a"]))
    assert name == "models"
    assert part in text


async def test_a_missing_key(model, check):
    model.says("/v1/models", error(), 401)
    assert "wants a key (401 some_error): set api_key" in last(await check(model.url, api_key=None))[1]
    assert "refuses the key" in last(await check(model.url, api_key=None, headers={"API-Key": "k"}))[1]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/v1/chat/completions", "/v1"),
        ("/api", "/api/v1"),
        ("/api/v2", "/v1"),
        ("/openai/v1/models", "/openai/v1"),
    ],
)
async def test_a_path_that_is_not_the_base_of_the_api(model, check, path, right):
    del model.answers["/v1/models"]
    model.says(f"{right}/models", listing("a"))
    name, text = last(await check(model.url.replace("/v1", path)))
    assert name == "models"
    assert text.endswith(f"set url to end in {right}.")


async def test_a_server_without_a_list_of_models_anywhere(model, check):
    del model.answers["/v1/models"]
    assert "which usually ends in /v1" in last(await check(model.url))[1]
    assert "/v1/chat/completions" not in model.paths


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"<html>" + SAID.encode(), "is not JSON, perhaps a web page"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"message":"%b"}' % SAID.encode(), "is JSON, but no list of models"),
        (b'{"data":[{"name":"a"}]}', "is JSON, but no list of models"),
    ],
)
async def test_an_answer_that_is_no_list(model, check, body, part):
    model.says("/v1/models", body)
    assert part in last(await check(model.url, models=["a"]))[1]


async def test_an_empty_list(model, check):
    model.says("/v1/models", listing())
    assert "load a model" in last(await check(model.url))[1]


@pytest.mark.parametrize("status", [200, 401])
async def test_a_nightmill_is_no_upstream(model, check, status):
    model.says("/version", b'{"name":"nightmill","version":"1"}')
    model.says("/v1/models", error(), status)
    assert "is a nightmill itself" in last(await check(model.url))[1]


async def test_names_that_can_not_be_printed_are_not_shown(model, check):
    model.says("/v1/models", listing("a\nb", "x" * 200, "good", ""))
    assert (await check(model.url, models=["good"])).steps[2].text == "The server lists 4 models: good."


# --- requests ---------------------------------------------------------------------------------------


async def test_a_model_that_does_not_exist_gets_near_names(model, check):
    near = [f"qwen3-{size}b" for size in (1, 2, 3, 4, 5, 6, 7)]
    model.says("/v1/models", listing("bert", *near))
    model.says("/v1/chat/completions", error("model_not_found"), 404)
    name, text = last(await check(model.url, models=["qwen-3b"]))
    assert name == "request"
    assert text.startswith("qwen-3b: the server has no such model. Near names: qwen3-3b, ")
    assert text.count(",") == 4
    assert "bert" not in text


async def test_without_a_near_name_the_list_is_shown(model, check):
    model.says("/v1/chat/completions", error("model_not_found"), 404)
    assert last(await check(model.url, models=["zzzzzz"]))[1].endswith("no such model. It lists a, b.")


async def test_one_model_of_several_that_fails_makes_the_upstream_unusable(model, check):
    model.says(("/v1/chat/completions", "a"), error("engine_dead"), 500)
    found = await check(model.url, models=["a", "b"])
    assert not found.is_usable
    assert [step.is_ok for step in found.steps[3:]] == [False, True]
    assert found.steps[3].text == "a: The server fails (500 engine_dead): its log has the reason."


async def test_an_embedding_model_that_is_configured_for_chat(model, check):
    model.says("/v1/chat/completions", error(), 400)
    model.says("/v1/embeddings", EMBEDDING)
    _, text = last(await check(model.url, endpoints=["/v1/chat/completions"]))
    assert "It is an embedding model: it answers /v1/embeddings, not /v1/chat/completions." in text


@pytest.mark.parametrize(
    ("status", "code", "part"),
    [
        (401, None, "refuses the key"),
        (429, "insufficient_quota", "no credit left"),
        (503, None, "is starting"),
        (400, "bad", "refuses the request (400 bad)"),
        (200, None, "fails"),
    ],
)
async def test_a_model_that_answers_with_an_error(model, check, status, code, part):
    model.says("/v1/chat/completions", error(code), status)
    name, text = last(await check(model.url))
    assert name == "request"
    assert part in text


async def test_a_server_that_has_models_and_no_endpoint_for_them(model, check):
    del model.answers["/v1/chat/completions"]
    _, text = last(await check(model.url))
    assert text.startswith("a: The server does not know the path (404)")
    assert model.paths[2:] == ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


async def test_other_endpoints_are_not_asked_after_a_failure_that_is_not_about_the_endpoint(model, check):
    model.says("/v1/chat/completions", error(), 401)
    await check(model.url)
    assert model.paths[-1] == "/v1/chat/completions"


async def test_a_model_that_gives_no_answer(rogue, check, words):
    rogue.plays(words.answer(listing("a")))
    rogue.plays(words.answer(b"{}"))
    rogue.plays(words.HANG)
    assert "no answer within 0.5 s" in last(await check(rogue.url, timeout_s=0.5))[1]
