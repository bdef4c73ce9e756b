"""Texts that match a regular expression of a JSON Schema (ECMA 262).

A pattern is parsed into a function that makes texts. Assertions such as `(?=...)` are not aimed for: the
caller checks each text and asks for another.
"""

import string
import sys
from collections.abc import Callable
from random import Random
from typing import Final, TypeAlias

from nightmill.emulator.content import BadBodyError

Maker: TypeAlias = Callable[[Random, int], str]
"""Takes the randomness, and how many more repetitions than the fewest a quantifier may have."""

_DIGITS: Final = string.digits
_WORD: Final = string.ascii_letters + string.digits + "_"
_SPACE: Final = " "
_ANY: Final = string.ascii_letters + string.digits + "-!"
_LONGEST: Final = 100_000
_SHARE_OF_ALL: Final = 0.2
_PRINTABLE: Final = string.ascii_letters + string.digits + " !#$%&()*+,-./:;<=>?@[]^_{|}~'\"\\`"
_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_UNICODE_CLASSES: Final = {
    "L": string.ascii_letters,
    "Lu": string.ascii_uppercase,
    "Ll": string.ascii_lowercase,
    "N": _DIGITS,
    "Nd": _DIGITS,
    "P": "-.,;:!?",
    "S": "+=$",
    "Z": " ",
    "Zs": " ",
}


class PatternParser:
    """Parses a pattern; `maker` makes texts of it.

    Raises:
        BadBodyError: the pattern has a construct that is not supported, such as a reference to a group.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._place = 0
        self.maker = self._alternatives()
        if self._place < len(pattern):
            raise self._unsupported()

    def _unsupported(self) -> BadBodyError:
        return BadBodyError(f"The emulator cannot read the pattern {self._pattern[:100]!r}.")

    def _next(self) -> str:
        if self._place >= len(self._pattern):
            raise self._unsupported()
        self._place += 1
        return self._pattern[self._place - 1]

    def _skip(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _until(self, end: str) -> str:
        place = self._pattern.find(end, self._place)
        if place < 0:
            raise self._unsupported()
        found, self._place = self._pattern[self._place : place], place + len(end)
        return found

    def _alternatives(self) -> Maker:
        makers = [self._sequence()]
        while self._skip("|"):
            makers.append(self._sequence())
        return makers[0] if len(makers) == 1 else lambda random, more: random.choice(makers)(random, more)

    def _sequence(self) -> Maker:
        makers: list[Maker] = []
        while self._place < len(self._pattern) and self._pattern[self._place] not in "|)":
            makers.append(self._repeated(self._atom()))
        return lambda random, more: "".join(maker(random, more) for maker in makers)

    def _repeated(self, atom: Maker) -> Maker:
        bounds = self._bounds()
        if bounds is None:
            return atom
        fewest, most = bounds
        for mark in "?+":  # lazy and possessive: the same texts
            if self._skip(mark):
                break

        def make(random: Random, more: int) -> str:
            highest = fewest + more if most is None else min(most, fewest + more)
            count = random.randint(fewest, max(fewest, highest))
            made: list[str] = []
            length = 0
            for _ in range(count):
                made.append(atom(random, more))
                length += 1 + len(made[-1])
                if length > _LONGEST:
                    raise BadBodyError("A pattern of the schema asks for too long a text for the emulator.")
            return "".join(made)

        return make

    def _bounds(self) -> tuple[int, int | None] | None:
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._skip(mark):
                return bounds
        if not self._pattern.startswith("{", self._place):
            return None
        start = self._place
        self._skip("{")
        low, comma, high = self._until("}").partition(",")
        if not low.isdecimal() or not (high == "" or high.isdecimal()):
            self._place = start  # a literal brace
            return None
        return int(low), (int(high) if high else None if comma else int(low))

    def _atom(self) -> Maker:
        match self._next():
            case "(":
                return self._group()
            case "[":
                return _one_of(self._set())
            case ".":
                return _one_of(_ANY)
            case "^" | "$":
                return _nothing
            case "\\":
                return self._escape()
            case literal:
                return _one_of(literal)

    def _group(self) -> Maker:
        is_assertion = any(self._skip(mark) for mark in ("?=", "?!", "?<=", "?<!"))
        if not is_assertion and not self._skip("?:") and (self._skip("?P<") or self._skip("?<")):
            self._until(">")
        maker = self._alternatives()
        if not self._skip(")"):
            raise self._unsupported()
        return _nothing if is_assertion else maker

    def _escape(self) -> Maker:
        mark = self._next()
        if mark in "bB":
            return _nothing
        if mark in "123456789k":
            raise self._unsupported()
        return _one_of(self._escaped(mark))

    def _escaped(self, mark: str) -> str:
        """The characters that an escape stands for."""
        if mark.lower() in _CLASSES:
            members = _CLASSES[mark.lower()]
            return members if mark.islower() else _others(members)
        if mark in _CONTROLS:
            return _CONTROLS[mark]
        if mark in "pP" and self._skip("{"):
            members = _UNICODE_CLASSES.get(self._until("}"), string.ascii_letters)
            return members if mark == "p" else _others(members)
        if mark == "u" and self._skip("{"):
            return self._character(self._until("}"))
        if mark in "xu":
            width = 2 if mark == "x" else 4
            self._place += width
            return self._character(self._pattern[self._place - width : self._place])
        return mark

    def _character(self, digits: str) -> str:
        try:
            code = int(digits, 16)
        except ValueError:
            raise self._unsupported() from None
        if code > sys.maxunicode or 0xD800 <= code <= 0xDFFF:  # no character of its own
            raise self._unsupported()
        return chr(code)

    def _set(self) -> str:
        is_negated = self._skip("^")
        members = ""
        while not self._skip("]"):
            first = self._member()
            if len(first) != 1 or not self._is_range():
                members += first
                continue
            self._skip("-")
            last = self._member()
            if len(last) != 1 or ord(last) < ord(first):
                raise self._unsupported()
            codes = range(ord(first), min(ord(last), ord(first) + 0x200) + 1)
            members += "".join(map(chr, codes))
        return _others(members) if is_negated else members

    def _is_range(self) -> bool:
        place = self._place
        return self._pattern.startswith("-", place) and not self._pattern.startswith("-]", place)

    def _member(self) -> str:
        character = self._next()
        return self._escaped(self._next()) if character == "\\" else character


def _others(members: str) -> str:
    return "".join(character for character in _PRINTABLE if character not in members)


def _one_of(members: str) -> Maker:
    if not members:
        raise BadBodyError("The emulator cannot make a text of an empty set of characters.")
    readable = [member for member in members if member in _WORD] or members

    def make(random: Random, _more: int) -> str:
        # Mostly letters and digits; the others too, since an assertion may ask for one of them.
        return random.choice(members if random.random() < _SHARE_OF_ALL else readable)

    return make


def _nothing(_random: Random, _more: int) -> str:
    return ""
