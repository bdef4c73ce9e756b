"""The base of the published shapes (docs/openai-behaviour.md 1, 2), with the shapes of errors and models.

Pydantic models check requests and describe the OpenAPI document; `*_on_wire` functions write responses. The
output of `*_on_wire` has every key in OpenAI's order, with null for an absent value; a test compares models
and functions. Functions keep polling cheap: no model is built for a response. `file_wire` and `batch_wire`
hold the other shapes, `violations` the error texts.

Checks that a type cannot express raise errors inside pydantic, so that `violations` ranks all errors of a
request together. Settings can replace the allowed values:
`model_validate(..., context={"endpoints": ...})`; the default is the published values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

UNSUPPORTED_VALUE = "unsupported_value"
WRONG_PREFIX = "wrong_prefix"
MALFORMED_ID = "malformed_id"
TOO_MANY_PAIRS = "too_many_pairs"
NOT_A_COUNT = "not_a_count"

_ID_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_Pairs = TypeVar("_Pairs", bound="Mapping[str, str] | None")
Stamp = Annotated[int, WithJsonSchema({"type": "integer", "format": "unixtime"})]
MIN_EXPIRES_AFTER_S = 3_600
MAX_EXPIRES_AFTER_S = 2_592_000


class WireModel(BaseModel):
    """A published shape. Strict: `"1"` is not an integer, `1` not a string. Unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, use_attribute_docstrings=True)


class OwnModel(BaseModel):
    """A shape that OpenAI does not have, left out of the published document. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


# --- checks ------------------------------------------------------------------------------------------


def is_id_shaped(text: str) -> bool:
    """Whether the text can be an id. Other texts need no query of the store."""
    return _ID_SHAPE.fullmatch(text) is not None


def one_of(setting: str, published: Sequence[str]) -> Callable[[str, ValidationInfo], str]:
    def check(value: str, info: ValidationInfo) -> str:
        allowed = cast("Mapping[str, Sequence[str]]", info.context or {}).get(setting, published)
        if value not in allowed:
            detail: dict[str, Any] = {"allowed": tuple(str(option) for option in allowed)}
            raise PydanticCustomError(UNSUPPORTED_VALUE, "unsupported value", detail)
        return value

    return check


def id_that_begins_with(prefix: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not value.startswith(prefix):
            raise PydanticCustomError(WRONG_PREFIX, "wrong prefix", {"prefix": prefix})
        if not is_id_shaped(value):
            raise PydanticCustomError(MALFORMED_ID, "not an id")
        return value

    return check


def at_most_pairs(max_pairs: int) -> Callable[[_Pairs], _Pairs]:
    def check(pairs: _Pairs) -> _Pairs:
        if pairs is not None and len(pairs) > max_pairs:
            raise PydanticCustomError(
                TOO_MANY_PAIRS, "too many pairs", {"most": max_pairs, "got": len(pairs)}
            )
        return pairs

    return check


def count_or_share(value: float | None) -> float | None:
    """A number of lines, or a share of them if less than 1."""
    if value is not None and value >= 1 and value != int(value):
        raise PydanticCustomError(NOT_A_COUNT, "not a count")
    return value


# --- errors ------------------------------------------------------------------------------------------


class Error(WireModel):
    """The error of a request."""

    message: str
    """A readable message."""
    type: str
    """The kind of error."""
    param: str | None
    """The invalid field."""
    code: str | None
    """A machine-readable code."""


class ErrorResponse(WireModel):
    """The body of every error response."""

    error: Error


# --- models ------------------------------------------------------------------------------------------


class Model(WireModel):
    """A model of the upstream."""

    id: str
    created: Stamp
    """The time of its creation, in Unix seconds; 0 when the upstream does not report it."""
    object: Literal["model"]
    """Always `model`."""
    owned_by: str
    """Its owner."""


class ListModelsResponse(WireModel):
    """All models of the upstream."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Model]
