"""Lines of a stored input file for pages: the first ones, or one by its number, however long the file is."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final, TypedDict, cast

from nightmill.dashboard.calls import ApiCalls, ApiRefusalError, path_of

MOST_BYTES: Final = 1 << 20
"""Of one line."""


class FileLine(TypedDict):
    """A line: its number in the file, from 1, its text or the beginning of it, and what the text holds if it
    is a whole JSON object."""

    number: int
    text: str
    request: dict[str, Any] | None


async def first_lines(api: ApiCalls, file_id: str, *, most: int) -> Sequence[FileLine]:
    """The first lines that are not blank, fewer where they are long; none of a file that can't be read."""
    try:
        return await lines_from(api, file_id, 1, most=most)
    except ApiRefusalError:
        return []


async def lines_from(api: ApiCalls, file_id: str, number: int, *, most: int) -> Sequence[FileLine]:
    """The lines from a number on that are not blank. Raises ApiRefusalError."""
    page = await api.get(
        path_of("nightmill", "v1", "files", file_id, "lines"),
        {"line": number, "limit": most, "max_bytes": MOST_BYTES},
    )
    return [
        FileLine(number=number + place, text=line["text"], request=object_in(line["text"]))
        for place, line in enumerate(page["data"])
        if line["text"].strip()
    ]


def endpoint_of(lines: Sequence[FileLine], allowed: Collection[str]) -> str | None:
    """The endpoint that most of the lines name; None if they name none that is allowed."""
    named = (None if line["request"] is None else line["request"].get("url") for line in lines)
    counted = Counter(url for url in named if isinstance(url, str) and url in allowed)
    return next((url for url, _ in counted.most_common(1)), None)


def body_of(request: dict[str, Any] | None) -> dict[str, Any] | None:
    """The body of a request line; None where it has none."""
    body = None if request is None else request.get("body")
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def object_in(text: str) -> dict[str, Any] | None:
    """The JSON object of a text; None for any other text."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
