"""The states of a batch as a picture: which were reached and when, and which may follow. Pure.

States and arrows come from the table of `core.batch`; only their places are given here.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from nightmill.core.batch import TRANSITIONS, Status

WIDTH: Final = 930
HEIGHT: Final = 176
BOX_WIDTH: Final = 152
BOX_HEIGHT: Final = 56

_PLACES: Final[Mapping[Status, tuple[int, int]]] = {
    Status.VALIDATING: (1, 1),
    Status.IN_PROGRESS: (259, 1),
    Status.FINALIZING: (518, 1),
    Status.COMPLETED: (777, 1),
    Status.FAILED: (1, 119),
    Status.CANCELLING: (259, 119),
    Status.CANCELLED: (518, 119),
    Status.EXPIRED: (777, 119),
}
_SHORT: Final = {"cancel_requested": "cancel"}


def graph_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The picture of a batch, of the published object of the API.

    Each state has a `class`: `reached`, `current`, `open` if it may follow, else `closed`. `path` has the
    reached states in the order in which they were, with the seconds that each took.
    """
    path = _path(batch)
    current = Status(batch["status"])
    taken = set(pairwise(path))
    may_follow = _may_follow(current)
    states = [
        {
            "name": status.value,
            "x": x,
            "y": y,
            "at": _stamp(batch, status),
            "class": "current"
            if status is current
            else "reached"
            if status in path
            else "open"
            if status in may_follow
            else "closed",
        }
        for status, (x, y) in _PLACES.items()
    ]
    arrows = [
        {**_line(source, target), "label": label, "is_taken": (source, target) in taken}
        for (source, target), label in _labels().items()
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "box_width": BOX_WIDTH,
        "box_height": BOX_HEIGHT,
        "states": states,
        "arrows": arrows,
        "path": _steps(batch, path),
    }


def _path(batch: Mapping[str, Any]) -> list[Status]:
    """The states that the batch was in, the oldest first."""
    reached = [status for status in _PLACES if _stamp(batch, status) is not None]
    begin = [status for status in (Status.VALIDATING, Status.IN_PROGRESS) if status in reached]
    ending = [status for status in (Status.FINALIZING, Status.CANCELLING) if status in reached]
    ending.sort(key=lambda status: (_stamp(batch, status) or 0, status is Status.CANCELLING))
    return [*begin, *ending, *(status for status in reached if status.is_terminal)]


def _stamp(batch: Mapping[str, Any], status: Status) -> int | None:
    return batch["created_at"] if status is Status.VALIDATING else batch.get(f"{status}_at")


def _steps(batch: Mapping[str, Any], path: list[Status]) -> list[dict[str, Any]]:
    stamps = [_stamp(batch, status) or 0 for status in path]
    ends: list[int | None] = [*stamps[1:], None]
    return [
        {"name": status.value, "at": at, "took_s": None if end is None else end - at}
        for status, at, end in zip(path, stamps, ends, strict=True)
    ]


def _may_follow(current: Status) -> set[Status]:
    """The states to which arrows lead, over any number of them."""
    found: set[Status] = set()
    wave = {current}
    while wave:
        wave = {target for (source, _), target in TRANSITIONS.items() if source in wave} - found
        found |= wave
    return found


def _labels() -> dict[tuple[Status, Status], str]:
    """Each arrow, with the events that lead along it."""
    labels: dict[tuple[Status, Status], list[str]] = {}
    for (source, event), target in TRANSITIONS.items():
        labels.setdefault((source, target), []).append(_SHORT.get(event.value, event.value))
    return {arrow: ", ".join(names) for arrow, names in labels.items()}


def _line(source: Status, target: Status) -> dict[str, Any]:
    """From the edge of one box to the edge of the other, and the place of the label."""
    (x1, y1), (x2, y2) = _PLACES[source], _PLACES[target]
    half = BOX_HEIGHT // 2
    if y1 == y2:
        begin, end = (x1 + BOX_WIDTH, y1 + half), (x2 - 4, y2 + half)
        label, anchor = ((begin[0] + end[0]) // 2, begin[1] - 7), "middle"
    elif x1 == x2:
        begin, end = (x1 + BOX_WIDTH // 2, y1 + BOX_HEIGHT), (x2 + BOX_WIDTH // 2, y2 - 4)
        label, anchor = (begin[0] + 8, (begin[1] + end[1]) // 2 + 4), "start"
    else:
        begin, end = (x1 + BOX_WIDTH - 20, y1 + BOX_HEIGHT), (x2 + 20, y2 - 4)
        label, anchor = ((begin[0] + end[0]) // 2 + 14, (begin[1] + end[1]) // 2 - 2), "start"
    return {
        "x1": begin[0],
        "y1": begin[1],
        "x2": end[0],
        "y2": end[1],
        "label_x": label[0],
        "label_y": label[1],
        "anchor": anchor,
    }
