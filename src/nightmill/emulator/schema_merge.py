"""Joins the rules of two JSON Schemas for the same value into one, as `allOf` and `$ref` ask for.

Only rules without a choice are joined. The generator decides choices (`anyOf`, `oneOf`, `if`) before.
"""

from collections.abc import Callable, Mapping
from math import lcm
from typing import Any, Final, cast

from nightmill.emulator.content import BadBodyError
from nightmill.emulator.schema_check import Schema, array_rules, compiled, required_of, same, types_of

PLAIN: Final = frozenset(
    {
        "properties",
        "patternProperties",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "contains",
        "minContains",
        "maxContains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "multipleOf",
        "not",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "unevaluatedItems",
    }
)
"""Rules that are copied as they are; those with several spellings are rewritten by `plain_rules`."""

CONTAINED: Final = "nightmill: contained"
"""What several `contains` ask for, which no keyword can say together."""

_GREATER: Final = frozenset({"minProperties", "minContains", "minItems", "minLength", "minimum"})
_LESS: Final = frozenset({"maxProperties", "maxContains", "maxItems", "maxLength", "maximum"})


def plain_rules(rules: Mapping[str, Any]) -> dict[str, Any]:
    """The rules without references, choices and annotations, in the spelling of draft 2020-12."""
    plain = {name: value for name, value in rules.items() if name in PLAIN}
    if (types := types_of(rules)) is not None:
        plain["type"] = types
    if "const" in rules:
        plain["enum"] = [rules["const"]]
    elif "enum" in rules:
        plain["enum"] = rules["enum"]
    if required := required_of(rules):
        plain["required"] = list(required)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if rules.get(strict) is True:  # draft 4
            plain[strict] = rules.get(bound)
        else:
            plain |= {name: rules[name] for name in (bound, strict) if rules.get(name, False) is not False}
    first, rest = array_rules(rules)
    if first:
        plain["prefixItems"] = list(first)
    if rest is not True:
        plain["items"] = rest
    return plain


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plain rules of both; None if no value can satisfy both.

    A second `pattern`, `format` or `not` is left out: the caller checks the value against the whole schema.
    """
    result = {**other, **one}
    for name in one.keys() & other.keys():
        joined = _JOINS.get(name)
        if name in _GREATER or name == "exclusiveMinimum":
            result[name] = max(one[name], other[name])
        elif name in _LESS or name == "exclusiveMaximum":
            result[name] = min(one[name], other[name])
        elif joined is not None:
            result[name] = joined(one[name], other[name])
    if result.get("type") == [] or result.get("enum") == []:
        return None
    contained = [*contained_in(one), *contained_in(other)]
    if len(contained) > 1:
        result[CONTAINED] = contained
    _join_properties(one, other, result)
    _join_items(one, other, result)
    return result


def contained_in(rules: Mapping[str, Any]) -> list[Schema]:
    """A schema for each item that an array must contain."""
    if CONTAINED in rules:
        return rules[CONTAINED]
    return [rules["contains"]] * rules.get("minContains", 1) if "contains" in rules else []


def _join_properties(one: Mapping[str, Any], other: Mapping[str, Any], result: dict[str, Any]) -> None:
    """What one side does not name falls under its `additionalProperties`."""
    names = {**one.get("properties", {}), **other.get("properties", {})}
    if names:
        result["properties"] = {
            name: all_of([*_rules_for(name, one), *_rules_for(name, other)]) for name in names
        }
    if "patternProperties" in one and "patternProperties" in other:
        first, second = one["patternProperties"], other["patternProperties"]
        result["patternProperties"] = {
            pattern: all_of([part[pattern] for part in (first, second) if pattern in part])
            for pattern in {**first, **second}
        }
    if "additionalProperties" in one and "additionalProperties" in other:
        result["additionalProperties"] = all_of([one["additionalProperties"], other["additionalProperties"]])


def _rules_for(name: str, rules: Mapping[str, Any]) -> list[Schema]:
    if name in (properties := rules.get("properties", {})):
        return [properties[name]]
    if any(compiled(pattern).search(name) for pattern in rules.get("patternProperties", {})):
        return []  # `patternProperties` is kept, and applies to the name
    return [rules["additionalProperties"]] if "additionalProperties" in rules else []


def _join_items(one: Mapping[str, Any], other: Mapping[str, Any], result: dict[str, Any]) -> None:
    if not any(name in rules for name in ("prefixItems", "items") for rules in (one, other)):
        return
    (first, rest), (second, others) = array_rules(one), array_rules(other)
    result["prefixItems"] = [
        all_of(
            [
                first[place] if place < len(first) else rest,
                second[place] if place < len(second) else others,
            ]
        )
        for place in range(max(len(first), len(second)))
    ]
    result["items"] = all_of([rest, others])


def all_of(parts: list[Schema]) -> Schema:
    """A schema for values that satisfy all parts."""
    if any(part is False for part in parts):
        return False
    asking = [part for part in parts if part is not True and part != {}]
    return {"allOf": asking} if len(asking) > 1 else asking[0] if asking else True


def _join_types(one: list[str], other: list[str]) -> list[str]:
    both = [name for name in one if name in other]
    if "number" in one and "integer" in other and "integer" not in both:
        both.append("integer")
    if "integer" in one and "number" in other and "integer" not in both:
        both.append("integer")
    return both


def _join_values(one: list[Any], other: list[Any]) -> list[Any]:
    return [value for value in one if any(same(value, member) for member in other)]


def _join_names(one: list[str], other: list[str]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


def _join_multiples(one: float, other: float) -> float:
    if float(one).is_integer() and float(other).is_integer():
        return lcm(int(one), int(other))
    return max(one, other)  # the caller checks the value against both


def _join_mappings(one: object, other: object) -> object:
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise BadBodyError("The schema has dependencies that are not objects.")
    return {**cast("dict[str, Any]", one), **cast("dict[str, Any]", other)}


def _either(one: bool, other: bool) -> bool:
    return one or other


_JOINS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "type": _join_types,
    "enum": _join_values,
    "required": _join_names,
    "multipleOf": _join_multiples,
    "uniqueItems": _either,
    "dependentRequired": _join_mappings,
    "dependentSchemas": _join_mappings,
    "dependencies": _join_mappings,
}
