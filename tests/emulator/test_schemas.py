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

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import types
from openai.types import chat, responses
from pydantic import BaseModel

from nightmill.emulator.answers import answer
from nightmill.emulator.content import FINGERPRINT, BadBodyError
from nightmill.emulator.schema_check import SchemaDocument
from nightmill.emulator.schema_merge import PLAIN
from nightmill.emulator.schema_sample import VARIANTS, sample
from nightmill.settings import Settings

HERE = Path(__file__).parent
CORPUS: dict[str, Any] = json.loads((HERE / "schemas.json").read_text())
HELM_VALUES = HERE.parents[1] / "deploy/helm/nightmill/values.schema.json"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def assert_satisfied(schema: Any, value: Any) -> None:
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    errors = list(validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value))
    assert not errors, f"{errors[0].message[:300]} in {json.dumps(value)[:300]}"


def made(schema: Any, number: int = 0) -> Any:
    return json.loads(sample(json.dumps(schema).encode(), bytes([number])))


def asked(endpoint: str, body: dict[str, Any]) -> Any:
    found = answer(endpoint, json.dumps({"model": "m", **body}).encode())
    assert found.status == 200, found.body
    return json.loads(found.body)


def hello(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **more}


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


# --- schemas by chance -----------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])
SCALARS = st.one_of(
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-9, 9),
        st.integers(0, 9),
    ),
    st.builds(
        lambda low, of: {"type": "integer", "minimum": low, "multipleOf": of},
        st.integers(-9, 9),
        st.integers(1, 7),
    ),
    st.builds(
        lambda low: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 1}, st.floats(-5, 5)
    ),
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 30),
        st.integers(0, 9),
    ),
    st.sampled_from(["^[a-c]{2,4}$", "x+y*", r"^\d{3}(-\w+)?$", "^(ab|cd)$", r"^[^\s]{5}$"]).map(
        lambda pattern: {"pattern": pattern, "type": "string"}
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"const": {"k": [1, None]}},
            {"enum": ["x", 2, None]},
            {},
            {"type": ["string", "null"]},
        ]
    ),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, low, size: {"type": "array", "items": items, "minItems": low, "maxItems": low + size},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda properties, needed, is_open: {
            "type": "object",
            "properties": properties,
            "required": sorted(needed & properties.keys()),
            "additionalProperties": is_open,
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.frozensets(NAMES),
        st.booleans(),
    )
    choices = st.builds(
        lambda key, parts: {key: parts}, st.just("anyOf"), st.lists(inner, min_size=1, max_size=3)
    )
    conditions = st.builds(lambda of, met, unmet: {"if": of, "then": met, "else": unmet}, inner, inner, inner)
    return st.one_of(arrays, objects, choices, conditions)


SCHEMAS = st.recursive(SCALARS, containers, max_leaves=8)
ANY_SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        containers(inner),
        st.builds(
            lambda key, parts: {key: parts},
            st.sampled_from(["allOf", "oneOf"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        inner.map(lambda part: {"not": part}),
        st.builds(
            lambda items, inside: {"type": "array", "items": items, "contains": inside, "uniqueItems": True},
            inner,
            inner,
        ),
        st.builds(
            lambda one, other: {
                "properties": {"a": one},
                "patternProperties": {"^[ab]": other},
                "minProperties": 1,
                "type": "object",
            },
            inner,
            inner,
        ),
        st.builds(
            lambda one, other: {
                "allOf": [one],
                "type": "object",
                "properties": {"d": other},
                "unevaluatedProperties": False,
            },
            inner,
            inner,
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, VARIANTS - 1))
def test_a_schema_by_chance_is_answered(schema: Any, number: int) -> None:
    has_condition = '"if"' in json.dumps(schema)
    try:
        value = made(schema, number)
    except BadBodyError:
        assert has_condition  # a condition may ask for what no value can be
        return
    assert_satisfied(schema, value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_SCHEMAS, st.integers(0, VARIANTS - 1))
def test_an_answer_satisfies_its_schema_or_there_is_none(schema: Any, number: int) -> None:
    try:
        value = made(schema, number)
    except BadBodyError:
        return
    assert_satisfied(schema, value)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["", "ab", "xy", "123"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_SCHEMAS, VALUES)
def test_the_check_agrees_with_another_validator(schema: Any, value: Any) -> None:
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert SchemaDocument(schema).accepts(value, schema) is expected


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 3),
        st.floats(-1, 1),
        st.sampled_from(["", "a", "object", "array", "string", "(", "#", "a{9}"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                sorted(
                    {
                        "a",
                        "type",
                        *PLAIN,
                        "items",
                        "prefixItems",
                        "required",
                        "enum",
                        "anyOf",
                        "allOf",
                        "if",
                        "then",
                        "$ref",
                        "minimum",
                        "exclusiveMaximum",
                    }
                )
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict | list):
        for key, below in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(below, (*path, key))


@st.composite
def damaged_schemas(draw: st.DrawFn) -> Any:
    """A schema of the corpus in which one part is replaced by anything."""
    schema = json.loads(json.dumps(CORPUS[draw(st.sampled_from(sorted(CORPUS)))]))
    *way, last = draw(st.sampled_from(list(places(schema))[1:]))
    node = schema
    for step in way:
        node = node[step]
    node[last] = draw(JUNK)
    return schema


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(JUNK, damaged_schemas()))
def test_what_is_no_schema_is_answered_or_refused_but_breaks_nothing(schema: Any) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = answer(CHAT, json.dumps({"model": "m", **hello(response_format=format_)}).encode())
    assert found.status in {200, 400}


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
    body = hello(model="m", structured_outputs={"grammar": 'root ::= "a"'})
    assert answer(CHAT, json.dumps(body).encode()).status == 400


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
