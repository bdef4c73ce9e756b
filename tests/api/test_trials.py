"""One request to an upstream, before a batch is made of many."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.api.test_tenants import admin_key
from tests.threaded_server import AnsweringHandler, listening

PATH = "/nightmill/v1/trials"
CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Model(AnsweringHandler):
    """Answers `good`, and says of every other model that it is unknown. `asked` has all bodies."""

    asked: list[dict[str, object]]

    def respond(self) -> None:
        body = json.loads(self.read())
        self.asked.append(body)
        if body["model"] != "good":
            self.answer(404, b'{"error": {"message": "no such model", "code": "model_not_found"}}')
            return
        choice = {"message": {"role": "assistant", "content": "Hello."}}
        self.answer(200, json.dumps({"choices": [choice], "usage": USAGE}).encode())


@contextmanager
def listening_model() -> Iterator[tuple[str, list[dict[str, object]]]]:
    asked: list[dict[str, object]] = []
    server = listening(type("OneModel", (Model,), {"asked": asked}), backlog=8)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body(model: str = "good", **fields):
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


def trial(server, key, document):
    return server.send_json(PATH, {"endpoint": CHAT, **document}, key=key)


def test_a_trial_is_answered_with_its_time_and_usage(serve):
    with listening_model() as (url, _):
        server = serve(settings={"upstream": {"url": url}})
        found = trial(server, server.new_key("p"), {"request": body()}).json()
    assert (found["is_ok"], found["status"], found["upstream"]) == (True, 200, "default")
    assert found["body"]["choices"][0]["message"]["content"] == "Hello."
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (3, 2)
    assert found["duration_s"] >= 0


def test_a_trial_is_sent_as_a_line_would_be_with_alias_and_priority(serve):
    with listening_model() as (url, asked):
        settings = {"upstream": {"url": url, "aliases": {"old": "good"}, "priority": 3}}
        server = serve(settings=settings)
        found = trial(server, server.new_key("p"), {"request": body("old")}).json()
    assert (found["model"], found["sent_model"], found["is_ok"]) == ("old", "good", True)
    assert (asked[0]["model"], asked[0]["priority"]) == ("good", 3)


def test_an_unknown_model_is_the_answer_of_the_upstream_with_advice(serve):
    with listening_model() as (url, _):
        server = serve(settings={"upstream": {"url": url}})
        found = trial(server, server.new_key("p"), {"request": body("bad")}).json()
    assert (found["is_ok"], found["status"], found["error"]["code"]) == (False, 404, "model_not_found")
    assert found["body"]["error"]["message"] == "no such model"
    assert "whether it has this model" in found["error"]["message"]


def test_a_model_that_no_upstream_serves_is_refused_with_the_name_that_is_near(serve):
    server = serve(settings={"upstream": {"url": "http://127.0.0.1:9/v1", "models": ["llama3.2"]}})
    answer = trial(server, server.new_key("p"), {"request": body("lama3.2")})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        404,
        "model_not_found",
        "request.model",
    )
    assert "Did you mean 'llama3.2'?" in answer.error["message"]


def test_the_host_of_an_upstream_that_is_away_is_named_to_admins_only(serve):
    server = serve(settings={"upstream": {"url": "http://127.0.0.1:9/v1"}})
    seen = trial(server, server.new_key("p"), {"request": body()}).json()
    assert (seen["is_ok"], seen["status"]) == (False, None)
    assert "127.0.0.1" not in json.dumps(seen)
    named = trial(server, admin_key(server), {"request": body(), "upstream": "default"}).json()
    assert "127.0.0.1" in named["error"]["message"]


def test_only_an_admin_chooses_the_upstream_and_may_ask_a_paused_one(serve):
    with listening_model() as (url, _):
        server = serve(settings={"upstream": {"url": url}})
        admin, key = admin_key(server), server.new_key("p")
        assert server.send_json("/nightmill/v1/upstreams/default/pause", {}, key=admin).status == 200
        assert trial(server, key, {"request": body(), "upstream": "default"}).status == 401
        paused = trial(server, key, {"request": body()})
        assert (paused.status, "is paused" in paused.error["message"]) == (409, True)
        assert trial(server, admin, {"request": body(), "upstream": "default"}).json()["is_ok"]
        unknown = trial(server, admin, {"request": body(), "upstream": "defualt"})
        assert (unknown.status, "Did you mean 'default'?" in unknown.error["message"]) == (404, True)


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "request"),
        ({"request": []}, "request"),
        ({"request": body(stream=True)}, "request.stream"),
        ({"request": {"model": "good"}}, "request.messages"),
        ({"request": {"messages": []}}, "request.model"),
        ({"request": body(), "endpoint": "/v1/x"}, "endpoint"),
        ({"request": body(), "timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_no_line_may_hold_is_refused_before_anything_is_sent(server, key, document, param):
    answer = trial(server, key, document)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_no_more_than_a_few_trials_run_at_once(server, key, monkeypatch):
    class NoneFree:
        def locked(self) -> bool:
            return True

    monkeypatch.setattr("nightmill.api.trials.turns_of", lambda _: NoneFree())
    answer = trial(server, key, {"request": body()})
    assert (answer.status, answer.headers["retry-after"]) == (429, "5")
