"""Answers are cut at the most tokens that a request allows, in this process and without HTTP."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from nightmill.emulator.answers import answer

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
SAID = {"messages": [{"role": "user", "content": "Hi."}]}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 80}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


def answered(endpoint: str, **body: Any) -> dict[str, Any]:
    made = answer(endpoint, json.dumps({"model": "m", **body}).encode())
    assert made.status == 200
    return json.loads(made.body)


@pytest.mark.parametrize("most", [{"max_tokens": 3}, {"max_completion_tokens": 3}])
def test_a_chat_completion_is_cut_at_its_most_tokens(most: dict[str, int]) -> None:
    content = answered(CHAT, **SAID, **most)
    ChatCompletion.model_validate(content)
    [choice] = content["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "This answer "
    assert content["usage"]["completion_tokens"] == 3


def test_an_answer_that_fits_is_whole() -> None:
    [choice] = answered(CHAT, **SAID, max_tokens=200)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith(".")


def test_a_completion_is_cut_at_its_most_tokens() -> None:
    content = answered(COMPLETIONS, prompt="Hi.", max_tokens=1)
    Completion.model_validate(content)
    [choice] = content["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("This", "length")


def test_a_response_is_incomplete_where_it_is_cut() -> None:
    content = answered(RESPONSES, input="Hi.", max_output_tokens=2)
    Response.model_validate(content)
    assert (content["status"], content["output"][0]["status"]) == ("incomplete", "incomplete")
    assert content["incomplete_details"] == {"reason": "max_output_tokens"}
    assert content["output"][0]["content"][0]["text"] == "This ans"


def test_structured_outputs_and_calls_are_cut_too() -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    [choice] = answered(CHAT, **SAID, response_format=format_, max_tokens=9)["choices"]
    assert (len(choice["message"]["content"]), choice["finish_reason"]) == (36, "length")
    [choice] = answered(CHAT, **SAID, tools=TOOLS, max_tokens=9)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (len(call["function"]["arguments"]), choice["finish_reason"]) == (36, "length")
