"""Reads what a body of an answer holds: its text, its embedding, and whether the model ended it early.

A body may be of any endpoint and of any server, so nothing about its shape is certain.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

_REFUSED: Final = "the model refused to answer"
_CUT: Final = "the answer was cut off at the most tokens it may have"
_EARLY_ENDS: Final = {
    "length": _CUT,
    "max_output_tokens": _CUT,
    "content_filter": "the answer was stopped by a content filter",
}


def text_in(body: object) -> str | None:
    """The text of a chat completion (its first choice), completion or response; None where there is none."""
    for choice in _objects(body, "choices"):
        message = choice.get("message")
        content: object = cast("Mapping[str, Any]", message).get("content") if _is_object(message) else None
        text = content if content is not None else choice.get("text")
        return text if isinstance(text, str) else None
    pieces = [
        content["text"]
        for item in _objects(body, "output")
        for content in _objects(item, "content")
        if isinstance(content.get("text"), str)
    ]
    return "".join(pieces) if pieces else None


def vector_in(body: object) -> list[float] | None:
    """The first embedding; None where there is none, or it is in base64."""
    for entry in _objects(body, "data"):
        vector: object = entry.get("embedding")
        return cast("list[float]", vector) if isinstance(vector, list) else None
    return None


def early_end_in(body: object) -> str | None:
    """Why the model did not finish its text, in words; None if it did, or does not say."""
    for choice in _objects(body, "choices"):
        message = choice.get("message")
        if _is_object(message) and cast("Mapping[str, Any]", message).get("refusal"):
            return _REFUSED
        return _EARLY_ENDS.get(str(choice.get("finish_reason")))
    if any(
        content.get("refusal") for item in _objects(body, "output") for content in _objects(item, "content")
    ):
        return _REFUSED
    details: object = cast("Mapping[str, Any]", body).get("incomplete_details") if _is_object(body) else None
    reason = cast("Mapping[str, Any]", details).get("reason") if _is_object(details) else None
    return _EARLY_ENDS.get(str(reason))


def _objects(body: object, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects in the list of this name."""
    if not _is_object(body):
        return
    entries: object = cast("Mapping[str, Any]", body).get(name)
    if isinstance(entries, Sequence) and not isinstance(entries, str | bytes):
        for entry in cast("Sequence[object]", entries):
            if _is_object(entry):
                yield cast("Mapping[str, Any]", entry)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)
