"""The name that was probably meant where an unknown one was given. No I/O.

Settings and request bodies are described by classes with `model_fields`, so one function finds the names
that are known at a place.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args


def nearest_name(given: str, names: Iterable[str]) -> str | None:
    """The name most similar to `given`; None if no name is similar.

    Args:
        names: those that exist.
    """
    return next(iter(difflib.get_close_matches(given, list(names), n=1)), None)


def fields_above(model: Any, steps: Sequence[int | str]) -> list[str]:
    """The fields of the section that should have the last step of a path.

    Args:
        model: a class with `model_fields`, whose fields may be such classes, or unions and lists of them.
        steps: names of fields, and places in lists.
    """
    section = model
    for step in steps[:-1]:
        fields = getattr(section, "model_fields", {})
        if step in fields:
            section = _section_in(fields[step].annotation)
    return list(getattr(section, "model_fields", {}))


def field_at(model: Any, steps: Sequence[str]) -> Any:
    """The field at a path of names; None if there is none. Steps through a list name one of its entries."""
    section, field = model, None
    for step in steps:
        fields = getattr(section, "model_fields", {})
        field = fields.get(step, field)
        if step in fields:
            section = _section_in(fields[step].annotation)
    return field


def _section_in(annotation: Any) -> Any:
    """The class with fields in an annotation; the annotation itself if it has none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    for part in get_args(annotation):
        if hasattr(found := _section_in(part), "model_fields"):
            return found
    return annotation
