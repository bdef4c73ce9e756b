"""The metric names and matched labels of a PromQL expression, without a full parser."""

import re
from collections.abc import Iterator

_STRING = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")
_RANGE = re.compile(r"\[[^\]]*\]")
_LABEL_LIST = re.compile(
    r"\b(by|without|on|ignoring|group_left|group_right)\s*\((?P<labels>[^)]*)\)", re.IGNORECASE
)
_SELECTOR = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\s*(?P<matchers>\{[^}]*\})?(?P<call>\s*\()?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


def selectors(expression: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Each metric that the expression selects, with the labels that its matchers name."""
    text = _LABEL_LIST.sub(" ", _RANGE.sub(" ", _STRING.sub("''", expression)))
    for found in _SELECTOR.finditer(re.sub(r"\b\d[\w.]*", " ", text)):
        if not found["call"] and found["name"].lower() not in _WORDS:
            yield found["name"], frozenset(_MATCHER.findall(found["matchers"] or ""))


def grouping_labels(expression: str) -> frozenset[str]:
    """The labels that the expression groups or joins by."""
    lists = [found["labels"] for found in _LABEL_LIST.finditer(_STRING.sub("''", expression))]
    return frozenset(label.strip() for labels in lists for label in labels.split(",") if label.strip())
