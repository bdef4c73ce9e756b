"""Schemas by chance: an answer satisfies its schema, or there is none. The check agrees with another one."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightmill.emulator.answers import answer
from nightmill.emulator.content import BadBodyError
from nightmill.emulator.schema_check import SchemaDocument
from nightmill.emulator.schema_merge import PLAIN
from nightmill.emulator.schema_sample import VARIANTS
from tests.emulator.asked import CHAT, CORPUS, assert_satisfied, hello, made

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
