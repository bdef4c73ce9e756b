"""Faults by words in a line and by chance, seen through the emulator's app in this process."""

import asyncio
import json
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from nightmill.emulator.asgi import emulator_app
from nightmill.emulator.content import FINGERPRINT
from nightmill.emulator.fault_plan import NO_CHANCES, Chances
from nightmill.emulator.faults import Fault

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"


class Asked:
    """The app, called without HTTP."""

    def __init__(self, faults: Sequence[Fault] = (), chances: Chances = NO_CHANCES) -> None:
        self._app = emulator_app(faults=faults, chances=chances)

    def ask(self, path: str, body: object) -> tuple[int, dict[str, str], Any]:
        """Status, headers and the document."""
        return asyncio.run(self._ask(path, json.dumps(body).encode()))

    async def _ask(self, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], headers, json.loads(sent[1]["body"])

    def statuses(self, text: str, count: int) -> list[int]:
        return [self.ask(CHAT, said(text))[0] for _ in range(count)]


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(
    ("order", "statuses"),
    [
        ("[emulate: 429]", [429, 200, 429, 200]),
        ("[emulate: status 503, times 2]", [503, 503, 200, 503]),
        ("[emulate: 429, times 2] and then [emulate: 500]", [429, 429, 500, 200]),
        ("[emulate: 400]", [400, 400, 400, 400]),
        ("[emulate: 400, times 1]", [400, 200, 400, 200]),
        ("[emulate: 500, times always]", [500, 500, 500, 500]),
        ("[emulate:500,times 1]", [500, 200, 500, 200]),
    ],
)
def test_words_in_a_line_order_faults_that_follow_each_other(order: str, statuses: list[int]) -> None:
    assert Asked().statuses(f"Translate. {order}", 4) == statuses


def test_an_order_holds_for_its_own_line_only() -> None:
    emulator = Asked()
    assert emulator.statuses("one [emulate: 429]", 1) == [429]
    assert emulator.statuses("two", 1) == [200]
    assert emulator.statuses("three [emulate: 429]", 1) == [429]
    assert emulator.statuses("one [emulate: 429]", 1) == [200]


def test_an_order_has_options() -> None:
    status, headers, content = Asked().ask(
        CHAT, said("[emulate: 429, retry-after 7, code insufficient_quota]")
    )
    assert (status, headers["retry-after"]) == (429, "7")
    assert content["error"]["code"] == "insufficient_quota"
    status, headers, content = Asked().ask(CHAT, said("[emulate: slow, delay 0.01]"))
    assert (status, headers["x-nightmill-emulator"]) == (200, FINGERPRINT)
    assert content["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, {"model": "m", "input": "[emulate: 418]"}),
        (COMPLETIONS, {"model": "m", "prompt": ["a", "[emulate: 418]"]}),
        ("/v1/embeddings", {"model": "m", "input": "[emulate: 418]"}),
        ("/v1/moderations", {"input": "[emulate: 418]"}),
        ("/v1/images/generations", {"prompt": "[emulate: 418]"}),
    ],
)
def test_every_endpoint_takes_orders(path: str, body: object) -> None:
    assert Asked().ask(path, body)[0] == 418


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("[emulate: sloow]", "has no fault 'sloow'"),
        ("[emulate: 429", "has no end"),
        ("[emulate: 99]", "the status '99'"),
        ("[emulate: 429, times many]", "'times' without a number"),
        ("[emulate: 429, twice]", "has no 'twice'"),
    ],
)
def test_a_wrong_order_is_refused_with_an_example(order: str, reason: str) -> None:
    status, _, content = Asked().ask(CHAT, said(order))
    assert status == 400
    assert reason in content["error"]["message"]


def test_words_come_before_the_settings() -> None:
    emulator = Asked([Fault("status", status=500, times=None)], Chances(fail_rate=1.0, fail_statuses=(502,)))
    assert emulator.statuses("[emulate: 429]", 2) == [429, 500]
    assert Asked([], Chances(fail_rate=1.0, fail_statuses=(502,))).statuses("[emulate: 429]", 2) == [429, 502]


# --- answers that a model gives, but that are no use ------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "reason", "content"),
    [
        ("refusal", "stop", None),
        ("length", "length", "This answer is emulated"),
        ("content_filter", "content_filter", ""),
        ("empty", "stop", ""),
    ],
)
def test_a_chat_completion_is_refused_cut_filtered_or_empty(
    order: str, reason: str, content: str | None
) -> None:
    status, headers, answer = Asked().ask(CHAT, said(f"[emulate: {order}]", n=2))
    assert (status, headers["x-nightmill-emulator"]) == (200, FINGERPRINT)
    assert answer["system_fingerprint"] == FINGERPRINT
    ChatCompletion.model_validate(answer)
    for choice in answer["choices"]:
        assert choice["finish_reason"] == reason
        message = choice["message"]
        assert message["content"] == content or message["content"].startswith(content)
        assert bool(message["refusal"]) is (order == "refusal")


@pytest.mark.parametrize(
    ("order", "status", "reason"),
    [
        ("refusal", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
        ("empty", "completed", None),
    ],
)
def test_a_response_is_refused_cut_filtered_or_empty(order: str, status: str, reason: str | None) -> None:
    _, _, answer = Asked().ask(RESPONSES, {"model": "m", "input": f"[emulate: {order}]"})
    Response.model_validate(answer)
    assert answer["status"] == status
    assert (answer["incomplete_details"] or {}).get("reason") == reason
    kinds = [part["type"] for part in answer["output"][0]["content"]]
    assert kinds == {"refusal": ["refusal"], "length": ["output_text"]}.get(order, [])


def test_a_completion_is_cut_or_filtered_and_embeddings_are_answered() -> None:
    _, _, cut = Asked().ask(COMPLETIONS, {"model": "m", "prompt": "[emulate: length]"})
    Completion.model_validate(cut)
    assert cut["choices"][0]["finish_reason"] == "length"
    _, _, empty = Asked().ask(COMPLETIONS, {"model": "m", "prompt": "[emulate: content_filter]"})
    assert empty["choices"][0]["text"] == ""
    status, _, listed = Asked().ask("/v1/embeddings", {"model": "m", "input": "[emulate: length]"})
    assert (status, listed["object"]) == (200, "list")


def test_a_structured_output_or_tool_call_that_is_cut_is_not_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    _, _, answer = Asked().ask(CHAT, said("[emulate: length]", response_format=format_))
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["choices"][0]["message"]["content"])
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    _, _, answer = Asked().ask(CHAT, said("[emulate: length]", tools=tools))
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    given = {
        "model": "m",
        "input": "[emulate: length]",
        "tools": [{"type": "function", **tools[0]["function"]}],
    }
    _, _, answer = Asked().ask(RESPONSES, given)
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer["output"][0]["arguments"])


# --- chance -----------------------------------------------------------------------------------------------

LINES = [f"line {number}" for number in range(400)]


def failed(chances: Chances, lines: Sequence[str]) -> dict[str, list[int]]:
    emulator = Asked([], chances)
    return {line: emulator.statuses(line, 3) for line in lines}


def test_the_fail_rate_is_the_share_of_requests_that_fail() -> None:
    emulator = Asked([], Chances(fail_rate=0.25, fail_statuses=(429, 500)))
    statuses = [status for line in LINES for status in emulator.statuses(line, 1)]
    assert set(statuses) == {200, 429, 500}
    assert 0.2 < sum(status != 200 for status in statuses) / len(statuses) < 0.3


def test_the_same_requests_fail_in_any_order_of_requests() -> None:
    chances = Chances(fail_rate=0.5, seed=3)
    forwards = failed(chances, LINES[:60])
    assert forwards == failed(chances, LINES[59::-1])
    assert forwards != failed(Chances(fail_rate=0.5, seed=4), LINES[:60])


def test_a_line_that_failed_by_chance_can_be_answered_when_it_is_sent_again() -> None:
    by_line = failed(Chances(fail_rate=0.5), LINES[:60])
    assert any(found[0] != 200 and 200 in found[1:] for found in by_line.values())


def test_waits_have_the_median_and_the_99th_percentile_of_the_settings() -> None:
    chances = Chances(delay_s=0.2, delay_p99_s=2.0)
    waits = [chances.delay_of(line.encode()) for line in (f"line {number}" for number in range(4_000))]
    assert 0.18 < median(waits) < 0.22
    assert 1.6 < quantiles(waits, n=100)[98] < 2.6
    assert chances.delay_of(b"a") == chances.delay_of(b"a")
    assert Chances(delay_s=0.2).delay_of(b"a") == 0.2
    assert NO_CHANCES.delay_of(b"a") == 0
