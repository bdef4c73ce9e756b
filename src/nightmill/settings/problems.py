"""The message for a wrong setting: name, variable, value unless that may be secret, and what to do."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nightmill.core.nearest_name import fields_above, nearest_name
from nightmill.settings.sections import Settings

PREFIX: Final = "NIGHTMILL_"

_MEMBER_OF_UNION: Final = re.compile(r"constrained-|literal\[|int$|float$|str$")
_NUMBER_ERRORS: Final = frozenset({"int_parsing", "float_parsing", "bool_parsing", "literal_error"})
_LONGEST_VALUE: Final = 16
"""A longer text is not shown: a key may be in the wrong place."""
_SEE: Final = "docs/settings.md"
_VALUE_ERROR: Final = "Value error, "
_WORDS: Final = (
    (re.compile(r"Input should be a valid integer(?:, .*)?"), "it must be a whole number"),
    (re.compile(r"Input should be a valid number(?:, .*)?"), "it must be a number"),
    (re.compile(r"Input should be a valid boolean(?:, .*)?"), "it must be true or false"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"it must be at most \1"),
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"it must be at least \1"),
    (re.compile(r"Input should be less than (\S+)"), r"it must be less than \1"),
    (re.compile(r"Input should be greater than (\S+)"), r"it must be more than \1"),
    (re.compile(r"Input should be a valid string"), "it must be text"),
    (re.compile(r"Input should be "), "it must be "),
    (re.compile(r"Field required"), "it is missing"),
)


def message_of(error: ValidationError, upstreams: Sequence[str]) -> str:
    """The first error in one line.

    Args:
        upstreams: the names of the `[[upstreams]]`, in order.
    """
    listed = error.errors(include_url=False)
    # An unknown name says more than the missing one, which may be the same name without the mistake.
    first = next((other for other in listed if _is_misspelt(other, listed[0])), listed[0])
    steps = _steps_of(first["loc"])
    about_it = [other["msg"] for other in listed if _steps_of(other["loc"]) == steps]
    fields = fields_above(Settings, steps)
    if len(steps) > 1 and steps[0] == "upstreams" and isinstance(steps[1], int):
        steps[1] = upstreams[steps[1]]
    if not steps:
        return f"settings: {_plain_of_all(about_it)}; see {_SEE}"
    name = ".".join(str(step) for step in steps)
    subject = f"setting '{name}' ({variable_of(name)})"
    value: object = first["input"]
    if first["type"] == "extra_forbidden":
        near = nearest_name(str(steps[-1]), fields)
        meant = repr(near) if near else " or ".join(map(_with_variable, settings_like(name)))
        hint = f"; did you mean {meant}? See {_SEE}" if meant else f"; see {_SEE}"
        return f"{subject}: there is no such setting{hint}"
    said = _plain_of_all(about_it)
    if isinstance(value, int | float) or (
        isinstance(value, str) and first["type"] in _NUMBER_ERRORS and len(value) <= _LONGEST_VALUE
    ):
        said = f"{value!r} is not allowed: {said}"
    return f"{subject}: {said}; see {_SEE}"


def _is_misspelt(other: ErrorDetails, first: ErrorDetails) -> bool:
    """Whether `other` is an unknown name in the section that misses a name."""
    return (
        first["type"] == "missing"
        and other["type"] == "extra_forbidden"
        and other["loc"][:-1] == first["loc"][:-1]
    )


def variable_of(name: str) -> str:
    """`api.port` -> `NIGHTMILL_API__PORT`."""
    return PREFIX + re.sub(r"\W", "_", name.replace(".", "__")).upper()


def setting_names(section: type[BaseModel] = Settings, path: str = "") -> Iterator[str]:
    """The full name of every setting, in the order of the sections."""
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def settings_like(given: str) -> list[str]:
    """The settings that were probably meant by an unknown name: at most two.

    A name without its section (`port`), and one with `_` between section and name, as in the variable
    NIGHTMILL_API_PORT, are found too.
    """
    names = list(setting_names())
    flat = {re.sub(r"\W+", "_", name): name for name in names}
    if name := flat.get(re.sub(r"\W+", "_", given)):
        return [name]
    last = given.rpartition(".")[2]
    if same := [name for name in names if name.rpartition(".")[2] == last]:
        return same[:2]
    sections = dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)
    near = nearest_name(given, sections) if "." not in given else None
    near = near or nearest_name(given, names)
    return [near] if near else []


def _steps_of(place: Sequence[int | str]) -> list[int | str]:
    return [step for step in place if not _MEMBER_OF_UNION.match(str(step))]


def _with_variable(name: str) -> str:
    return f"{name!r} ({variable_of(name)})"


def plain(message: str) -> str:
    """A message of pydantic about a value, in the words of nightmill's own messages.

    `Input should be less than or equal to 10` -> `it must be at most 10`.
    """
    message = message.replace(_VALUE_ERROR, "")
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    return message


def _plain_of_all(messages: Sequence[str]) -> str:
    """One sentence for the messages about a value that could be of several types."""
    first, *others = dict.fromkeys(map(plain, messages))
    return " or ".join([first, *(other.removeprefix("it must be ") for other in others)])
