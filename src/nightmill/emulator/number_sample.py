"""Made-up numbers within the bounds of a JSON Schema."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import Any, Final

_USUAL: Final = (1, 100)
_SPAN: Final = 100


class NoValueError(Exception):
    """No value was found for these rules."""


def number_sample(rules: Mapping[str, Any], random: Random, *, is_whole: bool) -> float:
    """A number for the plain rules of a schema (`minimum`, `multipleOf` and so on).

    Raises:
        NoValueError: no number fits.
    """
    low, high = _bounds(rules)
    if is_whole or "multipleOf" in rules:
        step = Fraction(str(rules.get("multipleOf", 1)))
        if is_whole and step.denominator != 1:
            step = Fraction(step.numerator)
        return _multiple(rules, random, step, low, high)
    return _decimal(rules, random, low, high)


def _bounds(rules: Mapping[str, Any]) -> tuple[Fraction | None, Fraction | None]:
    lows = [Fraction(str(rules[name])) for name in ("minimum", "exclusiveMinimum") if name in rules]
    highs = [Fraction(str(rules[name])) for name in ("maximum", "exclusiveMaximum") if name in rules]
    return max(lows, default=None), min(highs, default=None)


def _multiple(
    rules: Mapping[str, Any], random: Random, step: Fraction, low: Fraction | None, high: Fraction | None
) -> float:
    """`step` times a whole number."""
    first = None if low is None else ceil(low / step)
    last = None if high is None else floor(high / step)
    if (
        first is not None
        and "exclusiveMinimum" in rules
        and first * step <= _exact(rules, "exclusiveMinimum")
    ):
        first += 1
    if last is not None and "exclusiveMaximum" in rules and last * step >= _exact(rules, "exclusiveMaximum"):
        last -= 1
    first, last = _usual(first, last)
    if first > last:
        raise NoValueError
    chosen = random.randint(first, last) * step
    return int(chosen) if chosen.denominator == 1 else float(chosen)


def _decimal(rules: Mapping[str, Any], random: Random, low: Fraction | None, high: Fraction | None) -> float:
    """A number with two digits behind the point where the bounds leave room for one."""
    cents_low = None if low is None else ceil(low * 100)
    cents_high = None if high is None else floor(high * 100)
    if cents_low is None or cents_high is None or cents_high - cents_low > 2:
        first, last = _usual(cents_low, cents_high, scale=100)
        # The bounds themselves may be excluded.
        return random.randint(first + (low is not None), last - (high is not None)) / 100
    assert low is not None
    assert high is not None
    if low > high or (low == high and rules.keys() & {"exclusiveMinimum", "exclusiveMaximum"}):
        raise NoValueError
    return float((low + high) / 2)


def _usual(low: int | None, high: int | None, *, scale: int = 1) -> tuple[int, int]:
    """The bounds, with small numbers where one is not given."""
    least, most = (bound * scale for bound in _USUAL)
    match low, high:
        case None, None:
            return least, most
        case None, int():
            return (min(least, high - _SPAN) if high < least + 2 else least), min(high, max(most, least))
        case int(), None:
            return max(low, least) if low <= most - 2 else low, max(most, low + _SPAN * scale)
        case _:
            assert low is not None
            assert high is not None
            return low, high


def _exact(rules: Mapping[str, Any], name: str) -> Fraction:
    return Fraction(str(rules[name]))
