"""Checks that a type alone can't express, raised inside pydantic so that all violations of a request are
ranked together (see `violations`).

What is allowed may come from settings: `model_validate(..., context={"endpoints": ...})`; without it the
published values hold.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

UNSUPPORTED_VALUE = "unsupported_value"
WRONG_PREFIX = "wrong_prefix"
ODD_ID = "odd_id"
TOO_MANY_PAIRS = "too_many_pairs"

_ID_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,128}")
_Pairs = TypeVar("_Pairs", bound="Mapping[str, str] | None")


def is_id_shaped(text: str) -> bool:
    """Whether a store can possibly hold it as an id. Anything else is unknown without asking."""
    return _ID_SHAPE.fullmatch(text) is not None


def one_of(setting: str, published: Sequence[str]) -> Callable[[str, ValidationInfo], str]:
    def check(value: str, info: ValidationInfo) -> str:
        allowed = cast("Mapping[str, Sequence[str]]", info.context or {}).get(setting, published)
        if value not in allowed:
            detail: dict[str, Any] = {"allowed": tuple(str(one) for one in allowed)}
            raise PydanticCustomError(UNSUPPORTED_VALUE, "unsupported value", detail)
        return value

    return check


def id_that_begins_with(prefix: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not value.startswith(prefix):
            raise PydanticCustomError(WRONG_PREFIX, "wrong prefix", {"prefix": prefix})
        if not is_id_shaped(value):
            raise PydanticCustomError(ODD_ID, "not an id")
        return value

    return check


def at_most_pairs(most: int) -> Callable[[_Pairs], _Pairs]:
    def check(pairs: _Pairs) -> _Pairs:
        if pairs is not None and len(pairs) > most:
            raise PydanticCustomError(TOO_MANY_PAIRS, "too many pairs", {"most": most, "got": len(pairs)})
        return pairs

    return check
