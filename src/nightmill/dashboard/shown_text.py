"""Texts of prompts and answers as a page may show them.

Such a text may hold anything. Templates escape it; this module makes visible what escaping leaves: control
characters, characters that turn the direction of the text around or that have no width, and lone surrogates,
which no response can be encoded with.
"""

import json
import re
from typing import Any, Final

import msgspec

from nightmill.core.json_text import depth

_C0: Final = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_NAMED: Final = (
    *range(0x80, 0xA0),
    0x061C,
    0x180E,
    0x200B,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
)
_VISIBLE: Final = _C0 | {0x7F: "\u2421"} | {code: f"⟨U+{code:04X}⟩" for code in _NAMED}
_MOST_DEPTH: Final = 200
_LONG_STRING: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_LONGEST_STRING: Final = 4_000
_KEPT_OF_STRING: Final = 200


def shown(text: str) -> str:
    """The text with every character visible that a page would hide."""
    if text.isascii() and text.isprintable():
        return text
    return text.replace("\r\n", "\n").encode("utf-8", "replace").decode().translate(_VISIBLE)


def shown_cut(text: str, most: int) -> tuple[str, int]:
    """The beginning of a text as it may be shown, and how many characters are left out."""
    return shown(text[:most]), max(0, len(text) - most)


def read_json(text: str) -> Any:
    """The value of a JSON text; None for a text that can't be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def pretty(text: str) -> str:
    """As `pretty_cut`, where it does not matter whether something is left out."""
    return pretty_cut(text)[0]


def pretty_cut(text: str) -> tuple[str, bool]:
    """JSON with indentation, and whether long strings in it are cut; other texts as they are.

    No value is decoded: numbers, escapes and the order of keys are those of the text.
    """
    if not _is_flat_enough(text):
        return shown(text), False
    try:
        json.loads(text)
        indented = msgspec.json.format(text, indent=2)
    except (ValueError, RecursionError):
        return shown(text), False
    cut = _LONG_STRING.sub(_cut_string, indented)
    return shown(cut), len(cut) != len(indented)


def _cut_string(found: re.Match[str]) -> str:
    whole = found[0]
    if len(whole) <= _LONGEST_STRING:
        return whole
    return f'{whole[:_KEPT_OF_STRING]}…" ({len(whole) - 2:,} characters)'


def _is_flat_enough(text: str) -> bool:
    """Whether indentation can't make the text much longer."""
    if text.count("[") + text.count("{") <= _MOST_DEPTH:
        return True
    return depth(text.encode("utf-8", "replace")) <= _MOST_DEPTH
