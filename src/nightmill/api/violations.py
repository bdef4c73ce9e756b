"""From pydantic's result to OpenAI's sentence about the first of them (docs/openai-behaviour.md 4.2).

Duty: the one place that words a wrong parameter, in a body or in a query. Promise: the order is missing,
type, value, id; within it the order of the fields. Not its duty: what is wrong (`wire`, `checks`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from nightmill.api import checks
from nightmill.api.envelope import echo
from nightmill.errors import RequestError

Finding = Mapping[str, Any]

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_VALUES = frozenset({checks.WRONG_PREFIX, checks.ODD_ID})


def to_request_error(result: Sequence[Finding]) -> RequestError:
    """The error for the finding that comes first."""
    return _worded(min(result, key=_rank))


def _rank(finding: Finding) -> int:
    kind = _kind(finding)
    if kind == "missing":
        return 0
    if kind in _EXPECTED:
        return 1
    return 3 if kind in _VALUES else 2


def _kind(finding: Finding) -> str:
    """Pydantic tells a value that is none of a few strings; one that is no string has the wrong type."""
    if finding["type"] == "literal_error" and not isinstance(finding.get("input"), str):
        return "string_type"
    return finding["type"]


def _worded(finding: Finding) -> RequestError:
    kind = _kind(finding)
    param = _param(finding["loc"])
    value: object = finding.get("input")
    detail = cast("Mapping[str, Any]", finding.get("ctx") or {})
    if kind == "int_parsing_size":
        return _out_of_range(param, cast("str", value))
    if kind in _EXPECTED:
        expected, got = _EXPECTED[kind], type_name(value)
        message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
        return RequestError(message, param=param, code="invalid_type")
    match kind:
        case "missing":
            message = f"Missing required parameter: '{param}'."
            return RequestError(message, param=param, code="missing_required_parameter")
        case checks.UNSUPPORTED_VALUE:
            return unsupported_value(cast("str", value), detail["allowed"], param=param)
        case "literal_error":
            allowed = str(detail["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            return unsupported_value(str(value), allowed, param=param)
        case checks.WRONG_PREFIX:
            return wrong_prefix(cast("str", value), detail["prefix"], param=param)
        case checks.ODD_ID:
            message = (
                f"Invalid '{param}': '{echo(cast('str', value))}'. Expected an ID of up to 128 letters, "
                "numbers, underscores, or dashes, but this value is longer or contains other characters."
            )
            return RequestError(message, param=param, code="invalid_value")
        case checks.TOO_MANY_PAIRS:
            most, got = detail["most"], detail["got"]
            message = (
                f"Invalid '{param}': too many properties. Expected an object with at most {most} properties, "
                f"but got an object with {got} properties instead."
            )
            return RequestError(message, param=param, code="object_above_max_properties")
        case "string_too_long":
            return _string_too_long(finding["loc"], param, cast("str", value), detail["max_length"])
        case "greater_than_equal":
            return _below(param, detail["ge"], value)
        case "less_than_equal":
            return _above(param, detail["le"], value)
        case _:
            return RequestError(f"Invalid '{param}'.", param=param, code="invalid_value")


def unsupported_value(value: str, allowed: Sequence[str], *, param: str) -> RequestError:
    supported = _joined([f"'{one}'" for one in allowed])
    message = f"Invalid value: '{echo(value)}'. Supported values are: {supported}."
    return RequestError(message, param=param, code="invalid_value")


def wrong_prefix(value: str, prefix: str, *, param: str) -> RequestError:
    message = f"Invalid '{param}': '{echo(value)}'. Expected an ID that begins with '{prefix}'."
    return RequestError(message, param=param, code="invalid_value")


def type_name(value: object) -> str:
    """A JSON value's type as OpenAI's messages name it."""
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


def _below(param: str, least: object, value: object) -> RequestError:
    message = (
        f"Invalid '{param}': integer below minimum value. "
        f"Expected a value >= {least}, but got {echo(str(value))} instead."
    )
    return RequestError(message, param=param, code="integer_below_min_value")


def _above(param: str, most: object, value: object) -> RequestError:
    message = (
        f"Invalid '{param}': integer above maximum value. "
        f"Expected a value <= {most}, but got {echo(str(value))} instead."
    )
    return RequestError(message, param=param, code="integer_above_max_value")


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
    """The dotted name a client knows. FastAPI puts 'query' in front; pydantic marks a bad key."""
    steps = list(location)
    if steps and steps[0] in {"query", "path", "body", "header"}:
        steps = steps[1:]
    if steps and steps[-1] == "[key]":
        steps = steps[:-2]
    return echo(
        "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    )


def _joined(words: Sequence[str]) -> str:
    if len(words) <= 2:
        return " and ".join(words)
    return ", ".join(words[:-1]) + ", and " + words[-1]
