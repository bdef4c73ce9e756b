"""OpenAI's error text for the first of pydantic's errors (docs/openai-behaviour.md 4.2).

This module holds the texts for invalid parameters in bodies and queries. The first error is chosen by kind:
missing, type, value, id; within a kind, by the order of the fields. `wire` defines the wire.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from nightmill.api import wire
from nightmill.api.envelope import echo
from nightmill.core.nearest_name import fields_above, nearest_name
from nightmill.errors import RequestError

PydanticError = Mapping[str, Any]

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_ID_KINDS = frozenset({wire.WRONG_PREFIX, wire.MALFORMED_ID})


def to_request_error(result: Sequence[PydanticError], *, model: object = None) -> RequestError:
    """The error for the violation with the lowest rank.

    Args:
        model: the shape of the body, whose fields are suggested in place of an unknown one.
    """
    return _request_error(min(result, key=_rank), model)


def _rank(violation: PydanticError) -> int:
    kind = _kind(violation)
    if kind == "missing":
        return 0
    if kind in _EXPECTED:
        return 1
    return 3 if kind in _ID_KINDS else 2


def _kind(violation: PydanticError) -> str:
    """The pydantic type of the error; a value for a literal that is not a string counts as a wrong type."""
    if violation["type"] == "literal_error" and not isinstance(violation.get("input"), str):
        return "string_type"
    return violation["type"]


def _request_error(violation: PydanticError, model: object) -> RequestError:
    kind = _kind(violation)
    param = _param(violation["loc"])
    value: object = violation.get("input")
    detail = cast("Mapping[str, Any]", violation.get("ctx") or {})
    if kind == "int_parsing_size":
        return _out_of_range(param, cast("str", value))
    if kind in _EXPECTED:
        expected, got = _EXPECTED[kind], type_name(value)
        message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
        return RequestError(message, param=param, code="invalid_type")
    match kind:
        case "missing":
            return missing_parameter(param)
        case "extra_forbidden":
            near = nearest_name(str(violation["loc"][-1]), fields_above(model, violation["loc"]))
            hint = "" if near is None else f" Did you mean '{near}'?"
            message = f"Unknown parameter: '{param}'.{hint}"
            return RequestError(message, param=param, code="unknown_parameter")
        case wire.UNSUPPORTED_VALUE:
            return unsupported_value(cast("str", value), detail["allowed"], param=param)
        case "literal_error":
            allowed = str(detail["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            return unsupported_value(str(value), allowed, param=param)
        case wire.WRONG_PREFIX:
            return wrong_prefix(cast("str", value), detail["prefix"], param=param)
        case wire.MALFORMED_ID:
            message = (
                f"Invalid '{param}': '{echo(cast('str', value))}'. Expected an ID of up to 128 letters, "
                "numbers, underscores, or dashes, but this value is longer or contains other characters."
            )
            return RequestError(message, param=param, code="invalid_value")
        case wire.TOO_MANY_PAIRS:
            most, got = detail["most"], detail["got"]
            message = (
                f"Invalid '{param}': too many properties. Expected an object with at most {most} properties, "
                f"but got an object with {got} properties instead."
            )
            return RequestError(message, param=param, code="object_above_max_properties")
        case wire.NOT_A_COUNT:
            message = (
                f"Invalid '{param}': {echo(str(value))} is neither a whole number nor a share of less than 1."
            )
            return RequestError(message, param=param, code="invalid_value")
        case "string_too_long":
            return _string_too_long(violation["loc"], param, cast("str", value), detail["max_length"])
        case "greater_than_equal":
            return _below(param, detail["ge"], value)
        case "less_than_equal":
            return above_maximum(param, detail["le"], value)
        case _:
            return RequestError(f"Invalid '{param}'.", param=param, code="invalid_value")


def missing_parameter(param: str) -> RequestError:
    message = f"Missing required parameter: '{param}'."
    return RequestError(message, param=param, code="missing_required_parameter")


def unsupported_value(value: str, allowed: Sequence[str], *, param: str) -> RequestError:
    supported = _enumeration([f"'{option}'" for option in allowed])
    message = f"Invalid value: '{echo(value)}'. Supported values are: {supported}."
    return RequestError(message, param=param, code="invalid_value")


def wrong_prefix(value: str, prefix: str, *, param: str) -> RequestError:
    message = f"Invalid '{param}': '{echo(value)}'. Expected an ID that begins with '{prefix}'."
    return RequestError(message, param=param, code="invalid_value")


def type_name(value: object) -> str:
    """The JSON type of a value, with the words of OpenAI's messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _below(param: str, least: float, value: object) -> RequestError:
    number = _number_kind(least)
    message = (
        f"Invalid '{param}': {number} below minimum value. "
        f"Expected a value >= {least:{_format(least)}}, but got {echo(str(value))} instead."
    )
    return RequestError(message, param=param, code=f"{number}_below_min_value")


def above_maximum(param: str, most: float, value: object) -> RequestError:
    """The error for a number above the largest that is allowed."""
    number = _number_kind(most)
    message = (
        f"Invalid '{param}': {number} above maximum value. "
        f"Expected a value <= {most:{_format(most)}}, but got {echo(str(value))} instead."
    )
    return RequestError(message, param=param, code=f"{number}_above_max_value")


def _format(bound: float) -> str:
    return "g" if isinstance(bound, float) else "d"


def _number_kind(bound: float) -> str:
    return "decimal" if isinstance(bound, float) else "integer"


def _out_of_range(param: str, digits: str) -> RequestError:
    below = digits.strip().startswith("-")
    word, code = (
        ("below minimum", "integer_below_min_value")
        if below
        else ("above maximum", "integer_above_max_value")
    )
    message = f"Invalid '{param}': integer {word} value. Got {echo(digits)}."
    return RequestError(message, param=param, code=code)


def _string_too_long(location: Sequence[object], param: str, value: str, most: int) -> RequestError:
    subject = f"property name in '{param}'" if location[-1] == "[key]" else f"'{param}'"
    message = (
        f"Invalid {subject}: string too long. Expected a string with maximum length {most}, "
        f"but got a string with length {len(value)} instead."
    )
    return RequestError(message, param=param, code="string_above_max_length")


def _param(location: Sequence[object]) -> str:
    """The dotted name of the parameter, without the prefix of FastAPI and the key mark of pydantic."""
    steps = list(location)
    if steps and steps[0] in {"query", "path", "body", "header"}:
        steps = steps[1:]
    if steps and steps[-1] == "[key]":
        steps = steps[:-2]
    return echo(
        "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    )


def _enumeration(words: Sequence[str]) -> str:
    if len(words) <= 2:
        return " and ".join(words)
    return ", ".join(words[:-1]) + ", and " + words[-1]
