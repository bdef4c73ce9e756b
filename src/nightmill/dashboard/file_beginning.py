"""The first lines of a stored input file, however long the file is."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final, TypedDict, cast

from nightmill.dashboard.calls import ApiCalls, ApiRefusalError, path_of

MOST_BYTES: Final = 256 << 10
_BOM: Final = "\ufeff"


class FirstLine(TypedDict):
    """A line: its number in the file, from 1, its text, and what the text holds if it is a JSON object."""

    number: int
    text: str
    request: dict[str, Any] | None


async def first_lines(api: ApiCalls, file_id: str, *, most: int) -> Sequence[FirstLine]:
    """The first whole lines that are not blank; none of a file whose content can't be read here.

    A line that does not end within the first 256 KiB is left out, and so are all lines after it.
    """
    try:
        text = await api.get_text(
            path_of("v1", "files", file_id, "content"), headers={"range": f"bytes=0-{MOST_BYTES - 1}"}
        )
    except ApiRefusalError:
        return []
    lines = text.removeprefix(_BOM).split("\n")
    if len(text.encode()) >= MOST_BYTES:
        lines.pop()
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [FirstLine(number=number, text=line, request=_object(line)) for number, line in numbered[:most]]


def endpoint_of(lines: Sequence[FirstLine], allowed: Collection[str]) -> str | None:
    """The endpoint that most of the lines name; None if they name none that is allowed."""
    named = (None if line["request"] is None else line["request"].get("url") for line in lines)
    counted = Counter(url for url in named if isinstance(url, str) and url in allowed)
    return next((url for url, _ in counted.most_common(1)), None)


def body_of(line: FirstLine) -> dict[str, Any] | None:
    """The body of the request; None where the line has none."""
    body = None if line["request"] is None else line["request"].get("body")
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
