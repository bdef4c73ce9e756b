"""What keeps a process from its work: noted from its events, reported to its parent, and merged there.

A report is one line of JSON on the pipe to the parent (see `supervisor`), short enough for the pipe to take
the line whole. A report may be lost, so a lasting problem is reported again with each `refresh`. `/ready` and
`/metrics` show what the parent has. No prompt, answer, key or message of an upstream is part of a report.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import msgspec

from nightmill import telemetry
from nightmill.telemetry import UpstreamHeld

MOST_HELD: Final = 50
"""Models that one report names. The others are counted."""
_LINE_BYTES: Final = 4_000
_MOST_CHARACTERS: Final = 400
"""Of a reason, or of another problem's text."""
_MOST_TEXTS: Final = 5


class Problems(msgspec.Struct, frozen=True, omit_defaults=True):
    """What keeps a process, or several, from work.

    Args:
        held: each upstream and model at most once.
        others: other problems, a few words each.
        left_out: problems that are in neither.
    """

    held: tuple[UpstreamHeld, ...] = ()
    others: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def text(self) -> str | None:
        """All problems in one line, None without any."""
        return self._joined(telemetry.held_text)

    @property
    def text_with_next_attempts(self) -> str | None:
        """As `text`, with the next attempt of each model that is held."""
        return self._joined(telemetry.held_and_next_text)

    def _joined(self, describe: Callable[[UpstreamHeld], str]) -> str | None:
        texts = [*self.others, *map(describe, self.held)]
        left_out = max(0, len(texts) - _MOST_TEXTS) + self.left_out
        texts = texts[:_MOST_TEXTS]
        if left_out:
            texts.append(f"and {left_out} more")
        return "; ".join(texts) or None

    def encoded(self) -> bytes:
        """The report, one line without its line break; empty without a problem."""
        if self == Problems():
            return b""
        report = self
        while len(line := msgspec.json.encode(report)) > _LINE_BYTES:
            fewer = {"held": report.held[:-1]} if report.held else {"others": report.others[:-1]}
            report = msgspec.structs.replace(report, **fewer, left_out=report.left_out + 1)
        return line


def problem(text: str) -> Problems:
    """One problem that is not a held model."""
    return _bounded([], [text])


def decoded(line: bytes) -> Problems:
    """Reads what `encoded` wrote; an empty or damaged line has no problems."""
    try:
        return msgspec.json.decode(line, type=Problems)
    except msgspec.DecodeError:
        return Problems()


def merged(reports: Iterable[Problems]) -> Problems:
    """The problems of several processes: each upstream and model once, with its first `since` and its next
    attempt, and with the reason that needs the operator, or else the first reason.
    """
    held: dict[tuple[str, str | None], UpstreamHeld] = {}
    others: dict[str, None] = {}
    left_out = 0
    for report in reports:
        left_out = max(left_out, report.left_out)
        others.update(dict.fromkeys(report.others))
        for new in report.held:
            key = new.upstream, new.model
            old = held.get(key, new)
            shown = max(old, new, key=lambda event: (event.needs_operator, -event.since))
            held[key] = replace(shown, since=min(old.since, new.since), until=min(old.until, new.until))
    return _bounded(held.values(), others, left_out=left_out)


class ProblemLog:
    """Subscriber of events: writes the log lines, and reports what keeps this process from its work.

    Args:
        report: called with all problems that last after each change; with `Problems()` when all are over.
    """

    def __init__(self, report: Callable[[Problems], None]) -> None:
        self._report = report
        self._held: dict[tuple[str, str | None], UpstreamHeld] = {}
        self._writing: str | None = None

    @property
    def problems(self) -> Problems:
        """The problems that last."""
        return _bounded(self._held.values(), [self._writing] if self._writing else [])

    def emit(self, event: telemetry.Event) -> None:
        """Takes an event."""
        telemetry.log(event)
        match event:
            case telemetry.UpstreamHeld(upstream, model):
                self._held[upstream, model] = event
            case telemetry.UpstreamResumed(upstream, model):
                self._held.pop((upstream, model), None)
            case telemetry.WritingPaused(reason):
                self._writing = f"answers can't be written: {reason}"
            case telemetry.WritingResumed():
                self._writing = None
            case _:
                return
        self._report(self.problems)

    def refresh(self, held_now: Iterable[UpstreamHeld]) -> None:
        """Reports the problems that last once more, with the present reasons and next attempts.

        Args:
            held_now: the present state; what no event has announced is not reported.
        """
        if not self._held and self._writing is None:
            return
        for now in held_now:
            key = now.upstream, now.model
            announced = self._held.get(key)
            if announced is not None:
                self._held[key] = replace(now, since=announced.since)
        self._report(self.problems)


def _bounded(held: Iterable[UpstreamHeld], others: Iterable[str], *, left_out: int = 0) -> Problems:
    """The first of what is held, in order of `since`, with texts of bounded length."""
    ordered = sorted(held, key=lambda event: event.since)
    return Problems(
        tuple(
            replace(event, model=telemetry.shown_model(event.model), reason=event.reason[:_MOST_CHARACTERS])
            for event in ordered[:MOST_HELD]
        ),
        tuple(" ".join(text.split())[:_MOST_CHARACTERS] for text in others),
        left_out + max(0, len(ordered) - MOST_HELD),
    )
