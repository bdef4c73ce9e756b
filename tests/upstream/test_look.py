"""A look at an upstream: whether it is there and what it lists, without a request to a model."""

from nightmill.settings import UpstreamSettings
from nightmill.upstream.diagnosis import look_at
from tests.upstream.test_diagnosis import Model, listing


async def looked(words, *answers: tuple[str, bytes], url: str | None = None, **settings):
    model = Model(words)
    await model.start()
    for path, body in answers:
        model.says(path, body)
    found = await look_at(UpstreamSettings(**settings), url=url or model.url, timeout_s=5.0)
    await model.stop()
    return found, model.paths


async def test_a_server_with_models_is_there_and_no_model_is_asked(words):
    found, paths = await looked(words, ("/v1/models", listing("a", "b")))
    assert (found.is_usable, found.steps[-1].text) == (True, "The server lists 2 models: a, b.")
    assert set(paths) == {"/v1/models", "/version"}


async def test_a_server_without_a_list_is_there_if_the_settings_name_models(words):
    assert (await looked(words, models=("a",)))[0].is_usable
    unnamed, _ = await looked(words)
    assert not unnamed.is_usable
    assert "There is no list of models at /v1/models (404)" in unnamed.steps[-1].text


async def test_a_wrong_path_is_named_with_the_right_one(words):
    model = Model(words)
    await model.start()
    model.says("/v1/models", listing("a"))
    found = await look_at(UpstreamSettings(), url=model.url.removesuffix("/v1") + "/api", timeout_s=5.0)
    await model.stop()
    assert found.steps[-1].text.endswith("but there is one at /v1/models: set url to end in /v1.")


async def test_a_server_that_is_away_is_not_usable(words):
    found, _ = await looked(words, url="http://127.0.0.1:1/v1")
    assert (found.is_usable, found.steps[-1].name) == (False, "connection")


async def test_a_nightmill_is_not_usable(words):
    found, _ = await looked(words, ("/v1/models", listing("a")), ("/version", b'{"name":"nightmill"}'))
    assert (found.is_usable, found.steps[-1].text) == (
        False,
        "The server is a nightmill itself: set url to that of the model server.",
    )
