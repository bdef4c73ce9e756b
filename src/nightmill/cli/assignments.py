"""`FIELD=VALUE` on the command line as JSON, and secrets from a file or standard input.

A key is not accepted as a plain value: others can read a command line.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

from nightmill.cli.screen import clean
from nightmill.errors import RequestError

_LISTS: Final = frozenset({"models", "endpoints"})
_MAPPINGS: Final = frozenset({"aliases", "headers"})
_STDIN: Final = "-"


def assigned(words: Iterable[str]) -> dict[str, Any]:
    """`["weight=0", "aliases.small=qwen3-8b"]` -> `{"weight": 0, "aliases": {"small": "qwen3-8b"}}`.

    A value `@FILE` is read from a file, `@-` from standard input; an empty value is None.

    Raises:
        RequestError: a word is no assignment, a file cannot be read, or a key is given in plain text.
    """
    document: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        field, _, member = path.partition(".")
        if not equals or not field or (member != "") != (field in _MAPPINGS):
            example = f"{field}.NAME=VALUE" if field in _MAPPINGS else "FIELD=VALUE"
            raise RequestError(f"expected {example} and got '{clean(path)}{equals}'")
        if field == "api_key" and text and not text.startswith("@"):
            raise RequestError(
                "api_key in plain text can be read by others; use --key-file FILE or api_key=@FILE"
            )
        value = _value(field, secret_from(text[1:]) if text.startswith("@") else text)
        if member:
            cast("dict[str, Any]", document.setdefault(field, {}))[member] = value
        else:
            document[field] = value
    return document


def secret_from(place: str) -> str:
    """The text of a file, or of standard input for `-`, without the space around it.

    Raises:
        RequestError: the file cannot be read, or is empty.
    """
    try:
        text = sys.stdin.read() if place == _STDIN else Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"{clean(place)} can't be read: {reason}") from None
    if not text.strip():
        where = "standard input" if place == _STDIN else clean(place)
        raise RequestError(f"{where} is empty; put the value there")
    return text.strip()


def _value(field: str, text: str) -> Any:
    if text == "":
        return None
    if field in _LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    if field in _MAPPINGS:
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) and field != "api_key" else text
