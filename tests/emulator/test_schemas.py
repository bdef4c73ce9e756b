"""Structured outputs and tool calls satisfy their JSON Schema, as an independent validator sees it.

`schemas.json` has schemas as people send them: written after the public specifications of the libraries and
services that they are named for. Further schemas are those of installed packages.
"""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from openai import types
from openai.types import chat, responses
from pydantic import BaseModel

from nightmill.emulator.answers import answer
from nightmill.emulator.content import FINGERPRINT
from nightmill.emulator.schema_sample import VARIANTS, sample
from nightmill.settings import Settings
from tests.emulator.asked import CHAT, CORPUS, RESPONSES, asked, assert_satisfied, hello, made

HELM_VALUES = Path(__file__).parents[2] / "deploy/helm/nightmill/values.schema.json"


@pytest.mark.parametrize("name", CORPUS)
def test_every_made_up_value_satisfies_its_schema(name: str) -> None:
    for number in range(VARIANTS):
        assert_satisfied(CORPUS[name], made(CORPUS[name], number))


@pytest.mark.parametrize("name", CORPUS)
def test_a_structured_output_satisfies_its_schema(name: str) -> None:
    schema = CORPUS[name]
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    done = asked(CHAT, hello(response_format=format_))
    assert_satisfied(schema, json.loads(done["choices"][0]["message"]["content"]))
    assert done["system_fingerprint"] == FINGERPRINT
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    done = asked(RESPONSES, {"input": "hi", "text": text})
    assert_satisfied(schema, json.loads(done["output"][0]["content"][0]["text"]))
    assert done["metadata"] == {"system_fingerprint": FINGERPRINT}


@pytest.mark.parametrize("name", CORPUS)
def test_a_tool_call_satisfies_the_parameters(name: str) -> None:
    function = {"name": "do_it", "parameters": CORPUS[name]}
    done = asked(CHAT, hello(tools=[{"type": "function", "function": function}]))
    [choice] = done["choices"]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "do_it"
    assert_satisfied(CORPUS[name], json.loads(call["function"]["arguments"]))
    chat.ChatCompletion.model_validate(done)
    done = asked(RESPONSES, {"input": "hi", "tools": [{"type": "function", **function}]})
    [item] = done["output"]
    assert (item["type"], item["name"]) == ("function_call", "do_it")
    assert_satisfied(CORPUS[name], json.loads(item["arguments"]))


def schemas_of_openai() -> Iterator[tuple[str, Any]]:
    for module in (types, chat, responses):
        for name in sorted(vars(module))[::9]:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind.model_json_schema()


def test_values_satisfy_the_large_schemas_of_the_official_client() -> None:
    found = dict(schemas_of_openai())
    assert len(found) > 20
    for schema in [*found.values(), responses.Response.model_json_schema(), Settings.model_json_schema()]:
        assert_satisfied(schema, made(schema))


def test_values_satisfy_the_schema_of_our_own_chart() -> None:
    schema = json.loads(HELM_VALUES.read_text())
    for number in range(3):
        assert_satisfied(schema, made(schema, number))


@pytest.mark.parametrize("draft", ["draft4", "draft6", "draft7"])
def test_values_satisfy_the_schema_of_schemas(draft: str) -> None:
    schema = json.loads(
        (files("jsonschema_specifications") / f"schemas/{draft}/metaschema.json").read_text("utf-8")
    )
    assert_satisfied(schema, made(schema))


def test_values_satisfy_schemas_of_kubernetes() -> None:
    folder = files("kubernetes_validate") / "kubernetes-json-schema/v1.36.0-local-strict"
    definitions = re.sub(
        r'"[^"]*#/\$?def\w*/', '"#/$defs/', (folder / "_definitions.json").read_text("utf-8")
    )
    known = json.loads(definitions)
    parts = known.get("definitions") or known.get("$defs")
    kinds = ("io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment", "io.k8s.api.batch.v1.CronJob")
    for kind in kinds:
        schema = {"$ref": f"#/$defs/{kind}", "$defs": parts}
        assert_satisfied(schema, made(schema))


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "finds no answer"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "finds no answer"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "finds no answer"),
        ({"$ref": "#"}, "finds no answer"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "finds no answer"),
        ({"$ref": "#/$defs/missing"}, "'#/$defs/missing' is not in the schema"),
        ({"$ref": "https://example.com/other"}, "is not in the schema"),
        ({"type": "text"}, "unknown type 'text'"),
        ({"type": "string", "pattern": "("}, "cannot read the pattern"),
        ({"type": "object", "required": "a", "properties": 3}, "not a valid JSON Schema"),
        ([], "not a valid JSON Schema"),
    ],
)
def test_a_schema_without_an_answer_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    refused = answer(CHAT, json.dumps({"model": "m", **hello(response_format=format_)}).encode())
    assert refused.status == 400
    error = json.loads(refused.body)["error"]
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_format_without_a_schema_is_refused() -> None:
    refused = answer(
        CHAT, json.dumps({"model": "m", **hello(response_format={"type": "json_schema"})}).encode()
    )
    assert refused.status == 400
    assert b"response_format.json_schema.schema" in refused.body


def test_values_differ_between_bodies_and_are_equal_for_equal_ones() -> None:
    schema = CORPUS["steps of a solution"]
    assert len({sample(json.dumps(schema).encode(), bytes([number])) for number in range(VARIANTS)}) > 8
    assert made(schema, 3) == made(schema, 3)


# --- what only vLLM has -----------------------------------------------------------------------------------

EMPLOYEE = CORPUS["guided: employee"]


def guided(**more: Any) -> str:
    [choice] = asked(CHAT, hello(**more))["choices"]
    [other] = asked("/v1/completions", {"prompt": "hi", **more})["choices"]
    assert bool(choice["message"]["content"]) is bool(other["text"])
    return choice["message"]["content"]


def test_guided_outputs_are_obeyed() -> None:
    for text in (
        guided(structured_outputs={"json": EMPLOYEE}),
        guided(guided_json=EMPLOYEE),
        guided(guided_json=json.dumps(EMPLOYEE)),
    ):
        assert_satisfied(EMPLOYEE, json.loads(text))
    assert guided(structured_outputs={"choice": ["yes", "no"]}) in {"yes", "no"}
    assert guided(guided_choice=["yes", "no"]) in {"yes", "no"}
    pattern = r"[a-z]{2}\d+@example\.com"
    assert re.fullmatch(pattern, guided(structured_outputs={"regex": pattern}))
    assert re.fullmatch(pattern, guided(guided_regex=pattern))
    assert json.loads(guided(structured_outputs={"json_object": True}))["emulated"] is True
    assert "emulated" in guided(structured_outputs={"json": None}, guided_json=None)


def test_a_grammar_is_refused() -> None:
    grammar = 'root ::= "a"'
    for asks in ({"structured_outputs": {"grammar": grammar}}, {"guided_grammar": grammar}):
        assert answer(CHAT, json.dumps(hello(model="m", **asks)).encode()).status == 400


# --- which tool is called --------------------------------------------------------------------------------

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": CORPUS["a classification"]}}
    for name in ("first", "second")
]


def called(**more: Any) -> list[str]:
    message = asked(CHAT, hello(tools=TOOLS, **more))["choices"][0]["message"]
    return [call["function"]["name"] for call in message.get("tool_calls", [])]


def test_a_tool_is_called_as_tool_choice_says() -> None:
    assert called(tool_choice="none") == []
    assert len(called(tool_choice="auto")) == len(called(tool_choice="required")) == len(called()) == 1
    for name in ("first", "second"):
        assert called(tool_choice={"type": "function", "function": {"name": name}}) == [name]
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": name}}]}
        assert called(tool_choice={"type": "allowed_tools", "allowed_tools": allowed}) == [name]


def test_after_the_result_of_a_tool_the_answer_is_a_text() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "c", "content": "4"}]
    [choice] = asked(CHAT, {"messages": messages, "tools": TOOLS})["choices"]
    assert choice["finish_reason"] == "stop"
    assert "emulated" in choice["message"]["content"]
    given = [{"type": "function_call_output", "call_id": "c", "output": "4"}]
    done = asked(RESPONSES, {"input": given, "tools": [{"type": "function", "name": "f"}]})
    assert [item["type"] for item in done["output"]] == ["message"]


def test_the_older_functions_are_called_in_the_older_form() -> None:
    functions = [{"name": "f", "parameters": CORPUS["a classification"]}]
    [choice] = asked(CHAT, hello(functions=functions))["choices"]
    assert choice["finish_reason"] == "function_call"
    call = choice["message"]["function_call"]
    assert call["name"] == "f"
    assert_satisfied(CORPUS["a classification"], json.loads(call["arguments"]))
    assert asked(CHAT, hello(functions=functions, function_call="none"))["choices"][0]["message"]["content"]


def test_a_custom_tool_gets_a_text_and_tools_of_the_provider_are_not_called() -> None:
    done = asked(CHAT, hello(tools=[{"type": "custom", "custom": {"name": "code"}}]))
    chat.ChatCompletion.model_validate(done)
    [call] = done["choices"][0]["message"]["tool_calls"]
    assert (call["type"], call["custom"]["name"]) == ("custom", "code")
    done = asked(RESPONSES, {"input": "hi", "tools": [{"type": "custom", "name": "code"}]})
    assert done["output"][0]["type"] == "custom_tool_call"
    responses.Response.model_validate(done)
    done = asked(RESPONSES, {"input": "hi", "tools": [{"type": "web_search"}]})
    assert done["output"][0]["type"] == "message"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x' not found"),
        ({"tools": [], "tool_choice": "required"}, "'tools' has none"),
        ({"tools": [{"type": "function"}]}, "tools[].name"),
    ],
)
def test_an_impossible_tool_choice_is_refused(body: dict[str, Any], reason: str) -> None:
    refused = answer(CHAT, json.dumps({"model": "m", **hello(**body)}).encode())
    assert refused.status == 400
    assert reason in json.loads(refused.body)["error"]["message"]
