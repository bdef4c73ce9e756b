"""Made-up texts within the rules of a JSON Schema: `pattern`, `format`, `minLength` and `maxLength`."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any, Final

from nightmill.emulator.content import WORDS, BadBodyError
from nightmill.emulator.format_sample import format_sample
from nightmill.emulator.number_sample import NoValueError
from nightmill.emulator.pattern_sample import Maker, PatternParser
from nightmill.emulator.schema_check import compiled

_LONGEST: Final = 100_000
_MORE: Final = (0, 2, 4, 8, 16, 32, 64, 256)
_TRIES: Final = 12
"""For each number of additional repetitions."""


def text_sample(rules: Mapping[str, Any], random: Random) -> str:
    """A text for the plain rules of a schema.

    Raises:
        NoValueError: no text was found.
    """
    shortest, longest = rules.get("minLength", 0), rules.get("maxLength", _LONGEST)
    if shortest > min(longest, _LONGEST):
        raise NoValueError
    if "pattern" in rules:
        return _matching(rules["pattern"], random, shortest, longest)
    if (text := format_sample(rules.get("format", ""), random)) is not None:
        return text
    text = f"emulated {random.choice(WORDS)} {random.choice(WORDS)}"
    while len(text) < shortest:
        text += f" {random.choice(WORDS)}"
    return text[:longest].rstrip().ljust(shortest, "x")


def name_sample(patterns: Sequence[str], random: Random, place: int) -> str:
    """A name for a property that the schema does not name: one of the patterns, if any can be matched."""
    if patterns:
        try:
            return _matching(random.choice(patterns), random, 0, _LONGEST)
        except (NoValueError, BadBodyError):
            pass
    return f"{random.choice(WORDS)}_{place + 1}"


def _matching(pattern: str, random: Random, shortest: int, longest: int) -> str:
    make, matches = _maker(pattern), compiled(pattern)
    for more in (*_MORE, shortest):
        for _ in range(_TRIES):
            text = make(random, more)
            if len(text) < shortest and not pattern.endswith("$"):
                text += "x" * (shortest - len(text))
            if shortest <= len(text) <= longest and matches.search(text):
                return text
    raise NoValueError


@lru_cache(maxsize=512)
def _maker(pattern: str) -> Maker:
    return PatternParser(pattern).maker
