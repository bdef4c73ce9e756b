"""The messages of pydantic about wrong values, in the words of nightmill's own messages. No I/O.

Settings and command lines show them; the API has OpenAI's wording (`api.violations`).
"""

import re
from collections.abc import Sequence
from typing import Final

_VALUE_ERROR: Final = "Value error, "
_WORDS: Final = (
    (re.compile(r"Input should be a valid integer(?:, .*)?"), "it must be a whole number"),
    (re.compile(r"Input should be a valid number(?:, .*)?"), "it must be a number"),
    (re.compile(r"Input should be a valid boolean(?:, .*)?"), "it must be true or false"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"it must be at most \1"),
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"it must be at least \1"),
    (re.compile(r"Input should be less than (\S+)"), r"it must be less than \1"),
    (re.compile(r"Input should be greater than (\S+)"), r"it must be more than \1"),
    (re.compile(r"Input should be "), "it must be "),
    (re.compile(r"Field required"), "it is missing"),
)


def plain(message: str) -> str:
    """`Input should be less than or equal to 10` -> `it must be at most 10`."""
    message = message.replace(_VALUE_ERROR, "")
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    return message


def plain_of_all(messages: Sequence[str]) -> str:
    """One sentence for the messages about a value that could be of several types."""
    first, *others = dict.fromkeys(map(plain, messages))
    return " or ".join([first, *(other.removeprefix("it must be ") for other in others)])
