"""What limits an unfinished batch now: one sentence for people, and a stable code for programs. No I/O.

The first of these that holds is the limit, from what stops every line to what slows some:

1. the status: the batch is validated, writes its files, or is being cancelled;
2. the batch is paused, no worker reports, or answers can't be written;
3. no upstream serves the model, or each that does is paused, held or at its rate limit;
4. nothing of the batch is in flight: other batches have the slots, or a worker has yet to lease lines;
5. some lines are in flight: the batch's own limit, its canary, the last lines, the slots of the upstream.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from nightmill.core.audit import KEYLESS
from nightmill.core.batch import Batch, Status
from nightmill.core.limit_rules import LimitRule
from nightmill.core.schedule import NEAR_DEADLINE_S, OpenBatch
from nightmill.core.upstream_report import BatchLines, ModelHold, ModelReport, UpstreamReport
from nightmill.core.upstream_setting import UpstreamState

_FULL_SHARE = 0.8
"""Attempts come and go: with this share of the limit in flight, the limit is what limits."""
_LONGEST_NAME = 80
_RECORD_PAUSE_S = 2.0
_LONGEST_RECORD_PAUSE_S = 3600.0


class WhyCode(StrEnum):
    """What can limit a batch."""

    WAITS_FOR_INTAKE = "waits_for_intake"
    VALIDATING = "validating"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    PAUSED = "paused"
    NO_WORKER = "no_worker"
    DISK_FULL = "answers_not_written"
    NO_UPSTREAM = "no_upstream"
    MODEL_NOT_SERVED = "model_not_served"
    UPSTREAM_PAUSED = "upstream_paused"
    UPSTREAM_HELD = "upstream_held"
    RATE_LIMIT = "rate_limit"
    EARLIER_DEADLINE = "behind_earlier_deadline"
    HIGHER_PRIORITY = "behind_higher_priority"
    OTHER_BATCHES = "behind_other_batches"
    STARTING = "starting"
    OWN_CONCURRENCY = "own_concurrency"
    CANARY = "canary"
    SENT_AGAIN = "lines_sent_again"
    LAST_LINES = "last_lines"
    SHARE = "upstream_share"
    CONCURRENCY_LIMIT = "concurrency_limit"
    SUPPLY = "lines_are_leased"


@dataclass(frozen=True, slots=True)
class Why:
    """What limits a batch.

    Args:
        sentence: for people; it holds no prompt, answer or key.
        upstream: the upstream that limits it; None if none does.
        until: Unix seconds at which the limit ends, None where that is not known.
    """

    code: WhyCode
    sentence: str
    upstream: str | None = None
    until: float | None = None

    @property
    def goes_on_at(self) -> float | None:
        """When lines are sent again, in Unix seconds; infinite if not known, None while some are sent."""
        if self.code is WhyCode.UPSTREAM_HELD and self.until is not None:
            return self.until
        return math.inf if self.code in _NOTHING_IS_SENT else None


_NOTHING_IS_SENT = frozenset(
    {
        WhyCode.PAUSED,
        WhyCode.NO_WORKER,
        WhyCode.DISK_FULL,
        WhyCode.NO_UPSTREAM,
        WhyCode.MODEL_NOT_SERVED,
        WhyCode.UPSTREAM_PAUSED,
        WhyCode.UPSTREAM_HELD,
    }
)


class RecordedWhy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limit of a batch that was recorded last.

    Args:
        code: a `WhyCode`, or a code of another version.
        since: when the limit was recorded, in Unix seconds.
        count: how many limits of the batch were recorded so far.
    """

    code: str
    since: float
    count: int = 1
    upstream: str | None = None

    def is_of(self, found: Why) -> bool:
        """Whether the limit is still the same, apart from its numbers."""
        return (self.code, self.upstream) == (found.code.value, found.upstream)


@dataclass(frozen=True, slots=True)
class ServingUpstream:
    """An upstream that may answer lines of the batch, for example `gpu` with 12 of 64 attempts in flight.

    Args:
        models: the batch's models as the upstream knows them; empty where they are not known.
        report: the merged reports of all workers; None without any.
        state: what the operator wants of it.
        share: the part of it that batches may use outside of quiet hours.
        quiet_at: when the next quiet hours begin, in Unix seconds; None without any, and while they last.
    """

    name: str
    models: frozenset[str] = frozenset()
    report: UpstreamReport | None = None
    state: UpstreamState = UpstreamState.ACTIVE
    share: float = 1.0
    quiet_at: float | None = None

    @property
    def entry(self) -> ModelReport | None:
        """The report of the slots that the batch's lines use; None if nothing was sent yet."""
        entries = self.report.per_model if self.report is not None else ()
        named = [entry for entry in entries if entry.model in self.models]
        return next(iter(named), next((entry for entry in entries if entry.model is None), None))

    def lines_of(self, batch_id: str) -> BatchLines:
        """The lines of a batch here."""
        batches = self.report.batches if self.report is not None else ()
        return next((lines for lines in batches if lines.batch_id == batch_id), BatchLines(batch_id))

    @property
    def batches_in_flight(self) -> frozenset[str]:
        """Ids of all batches with attempts in flight here."""
        batches = self.report.batches if self.report is not None else ()
        return frozenset(lines.batch_id for lines in batches if lines.in_flight)


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known around one batch.

    Args:
        now: Unix seconds.
        is_leased: whether a role works on the batch: intake while it is validating.
        paused_by: the actor that paused it; None if that is not known.
        upstreams: those that may answer its lines, reserves included.
        has_upstreams: whether there is any upstream at all.
        has_workers: whether a worker has reported lately.
        stalled: why answers can't be written; None while they can.
        others: other batches with attempts in flight at `upstreams`.
    """

    batch: Batch
    now: float
    is_leased: bool = False
    paused_by: str | None = None
    upstreams: Sequence[ServingUpstream] = ()
    has_upstreams: bool = True
    has_workers: bool = True
    stalled: str | None = None
    others: Sequence[OpenBatch] = ()


def why(situation: Situation) -> Why | None:
    """What limits the batch now; None for a batch that has ended."""
    batch = situation.batch
    match batch.status:
        case Status.VALIDATING if not situation.is_leased:
            return Why(WhyCode.WAITS_FOR_INTAKE, "The input file waits to be validated.")
        case Status.VALIDATING:
            return Why(WhyCode.VALIDATING, "The input file is being validated; no line is sent before.")
        case Status.FINALIZING:
            return Why(WhyCode.FINALIZING, "No more lines are sent; the output files are being written.")
        case Status.CANCELLING:
            return _cancelling(situation)
        case Status.IN_PROGRESS:
            return _in_progress(situation)
        case _:
            return None


def to_record(found: Why, before: RecordedWhy | None, *, now: float) -> RecordedWhy | None:
    """The limit if it must be recorded: it is another one than before, and not one of a quick alternation.

    The more limits of a batch were recorded, the longer is the shortest time between two, up to an hour. So a
    batch whose limit alternates every second has about a hundred entries on its first day, and 24 on others.
    """
    if before is None:
        return RecordedWhy(found.code.value, now, 1, found.upstream)
    pause_s = min(_LONGEST_RECORD_PAUSE_S, _RECORD_PAUSE_S * 2 ** (before.count // 8))
    if before.is_of(found) or now < before.since + pause_s:
        return None
    return RecordedWhy(found.code.value, now, before.count + 1, found.upstream)


def _cancelling(situation: Situation) -> Why:
    in_flight = sum(lines.in_flight for lines in _lines(situation))
    if in_flight:
        attempts = _count(in_flight, "attempt")
        return Why(WhyCode.CANCELLING, f"It is being cancelled; {attempts} in flight may still finish.")
    return Why(WhyCode.CANCELLING, "It is being cancelled; the files of its answers are being written.")


def _in_progress(situation: Situation) -> Why:
    return (
        _stopped(situation)
        or _without_upstream(situation)
        or _blocked(situation)
        or (_under_way(situation) if _in_flight(situation) else _waiting(situation))
    )


def _stopped(situation: Situation) -> Why | None:
    batch = situation.batch
    if batch.total and batch.tally.answered >= batch.total:
        return Why(WhyCode.FINALIZING, "All lines are done; the output files are written next.")
    if batch.paused_at is not None:
        actor = situation.paused_by
        by = f" by {_name(actor)}" if actor and actor != KEYLESS else ""
        since = _time(batch.paused_at, situation.now)
        return Why(WhyCode.PAUSED, f"It is paused{by} since {since}; resume it to go on.")
    if not situation.has_upstreams:
        return Why(
            WhyCode.NO_UPSTREAM, "There is no upstream; add one with: nightmill upstreams add NAME URL"
        )
    if not situation.has_workers:
        return Why(
            WhyCode.NO_WORKER,
            "No worker has reported in the last 15 s. One may be starting; else start nightmill serve with "
            "workers, or nightmill work.",
        )
    if situation.stalled is not None:
        return Why(WhyCode.DISK_FULL, f"Answers can't be written, so no line is sent: {situation.stalled}.")
    return None


def _without_upstream(situation: Situation) -> Why | None:
    if situation.upstreams:
        return None
    model = situation.batch.model
    of_model = "its models" if model is None else f"model {_name(model)}"
    return Why(WhyCode.MODEL_NOT_SERVED, f"No upstream serves {of_model} at {situation.batch.endpoint}.")


# --- every upstream is blocked ------------------------------------------------------------------------------


def _blocked(situation: Situation) -> Why | None:
    """The limit if no upstream can be sent lines: that of the upstream which is free first."""
    limits = [_block(upstream, situation.now) for upstream in situation.upstreams]
    found = [limit for limit in limits if limit is not None]
    if len(found) < len(limits):
        return None
    first = min(found, key=lambda limit: math.inf if limit.until is None else limit.until)
    if len(found) == 1:
        return first
    others = ", ".join(limit.upstream or "" for limit in found if limit is not first)
    sentence = f"{first.sentence.removesuffix('.')}; {others} can't be sent lines either."
    return Why(first.code, sentence, first.upstream, first.until)


def _block(upstream: ServingUpstream, now: float) -> Why | None:
    name, report, entry = upstream.name, upstream.report, upstream.entry
    if upstream.state is not UpstreamState.ACTIVE:
        verb = "draining" if upstream.state is UpstreamState.DRAINING else "paused"
        sentence = f"Waits for upstream {name}: {verb} by an operator; resume it with: nightmill upstreams"
        return Why(WhyCode.UPSTREAM_PAUSED, f"{sentence} resume {name}", name)
    held = _hold(upstream)
    if held is not None:
        until = "" if held.until is None else f" until {_time(held.until, now)}"
        cure = "; a setting has to change" if held.needs_operator else ""
        sentence = f"Waits for upstream {name}: held{until} ({held.reason}){cure}."
        return Why(WhyCode.UPSTREAM_HELD, sentence, name, held.until)
    if report is not None and report.rate_limit is not None and not (entry and _is_full(entry)):
        return Why(
            WhyCode.RATE_LIMIT,
            f"Waits for upstream {name}: {report.rate_limit} allows no more; {report.in_flight} in flight.",
            name,
        )
    return None


def _hold(upstream: ServingUpstream) -> ModelHold | None:
    entries = upstream.report.per_model if upstream.report is not None else ()
    concerned = [
        entry.held
        for entry in entries
        if entry.held is not None
        and (entry.model is None or not upstream.models or entry.model in upstream.models)
    ]
    return min(concerned, key=lambda hold: (not hold.needs_operator, hold.since), default=None)


# --- nothing in flight --------------------------------------------------------------------------------------


def _waiting(situation: Situation) -> Why:
    lines = _lines(situation)
    waiting = sum(one.waiting for one in lines)
    if waiting:
        return _sent_again(situation, lines, waiting)
    entries = [upstream.entry for upstream in situation.upstreams]
    if situation.others and any(entry is not None and _is_full(entry) for entry in entries):
        return _behind(situation)
    return Why(WhyCode.STARTING, "A worker leases its first lines, or the next ones.")


def _behind(situation: Situation) -> Why:
    batch, others = situation.batch, situation.others
    near = [
        other
        for other in others
        if other.deadline < batch.expires_at and other.deadline <= situation.now + NEAR_DEADLINE_S
    ]
    if near:
        return Why(
            WhyCode.EARLIER_DEADLINE, f"Behind {_batches(len(near))} with an earlier deadline, which is near."
        )
    higher = [
        other for other in others if other.project_id == batch.project_id and other.priority > batch.priority
    ]
    if higher:
        return Why(
            WhyCode.HIGHER_PRIORITY, f"Behind {_batches(len(higher))} of its project with a higher priority."
        )
    return Why(
        WhyCode.OTHER_BATCHES,
        f"Behind {_batches(len(others))}; its turn comes by the share of its project and its own.",
    )


# --- some lines are in flight -------------------------------------------------------------------------------


def _under_way(situation: Situation) -> Why:
    batch, lines = situation.batch, _lines(situation)
    in_flight = sum(one.in_flight for one in lines)
    waiting = sum(one.waiting for one in lines)
    unanswered = batch.total - batch.tally.answered
    if batch.concurrency is not None and in_flight >= batch.concurrency:
        sentence = f"{in_flight} in flight; its own limit is {batch.concurrency} (concurrency)."
        return Why(WhyCode.OWN_CONCURRENCY, sentence)
    if batch.canary_segments is not None:
        sentence = f"The canary runs: {batch.tally.answered} of its first {batch.options.canary} lines"
        return Why(WhyCode.CANARY, f"{sentence} are done; the others follow if few of them fail.")
    if waiting and in_flight + waiting >= unanswered:
        return _sent_again(situation, lines, waiting)
    upstream = max(situation.upstreams, key=lambda one: one.lines_of(batch.id).in_flight)
    if in_flight >= unanswered:
        return Why(
            WhyCode.LAST_LINES,
            f"Only its last {_count(in_flight, 'line')} in flight {'is' if in_flight == 1 else 'are'} left.",
            upstream.name,
        )
    return _slots(situation, upstream, in_flight)


def _sent_again(situation: Situation, lines: Iterable[BatchLines], waiting: int) -> Why:
    first = min(lines, key=lambda one: math.inf if one.next_at is None else one.next_at)
    at = "" if first.next_at is None else f" at {_time(first.next_at, situation.now)}"
    because = f" because of: {first.reason}" if first.reason else ""
    are = "is" if waiting == 1 else "are"
    sentence = f"{_count(waiting, 'line')} {are} to be sent again{at}{because}."
    return Why(WhyCode.SENT_AGAIN, sentence, until=first.next_at)


def _slots(situation: Situation, upstream: ServingUpstream, in_flight: int) -> Why:
    """The limit of the upstream that has most of the lines."""
    entry, name = upstream.entry, upstream.name
    here = upstream.lines_of(situation.batch.id).in_flight
    beside = "" if here == in_flight else f", {in_flight} in all"
    if entry is None or not _is_full(entry):
        of_limit = "" if entry is None or entry.limit is None else f" of {entry.limit}"
        rate = upstream.report.rate_limit if upstream.report is not None else None
        if rate is not None:
            return Why(WhyCode.RATE_LIMIT, f"{here} in flight on {name}; {rate} allows no more.", name)
        sentence = f"{here}{of_limit} in flight on {name}{beside}; further lines are being leased."
        return Why(WhyCode.SUPPLY, sentence, name)
    start = f"{here} of {entry.limit} in flight on {name}{beside}"
    others = entry.in_flight - here
    if situation.others and others > here:
        have = "has" if len(situation.others) == 1 else "have"
        sentence = f"{start}; {_batches(len(situation.others))} {have} the other {others}."
        return Why(_behind(situation).code, sentence, name)
    if entry.rule == LimitRule.SHARE.value or (upstream.share < 1 and entry.rule is None):
        until = "" if upstream.quiet_at is None else f" until {_time(upstream.quiet_at, situation.now)}"
        hours = "" if upstream.quiet_at is None else ", when quiet hours begin"
        sentence = f"{start}; share {upstream.share:g} applies{until}{hours}."
        return Why(WhyCode.SHARE, sentence, name, upstream.quiet_at)
    return Why(WhyCode.CONCURRENCY_LIMIT, f"{start}; {_limit_text(entry)}.", name)


def _limit_text(entry: ModelReport) -> str:
    if not entry.rule:
        return "the settings fix this limit"
    advice = f"; {entry.advice.removesuffix('.')}" if entry.advice else ""
    return f'the limit was found by the rule "{entry.rule}"{advice}'


# --- words --------------------------------------------------------------------------------------------------


def _in_flight(situation: Situation) -> int:
    return sum(lines.in_flight for lines in _lines(situation))


def _lines(situation: Situation) -> list[BatchLines]:
    return [upstream.lines_of(situation.batch.id) for upstream in situation.upstreams]


def _is_full(entry: ModelReport) -> bool:
    return entry.limit is not None and entry.in_flight >= _FULL_SHARE * entry.limit


def _batches(count: int) -> str:
    return "1 other batch" if count == 1 else f"{count:,} other batches"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _name(name: str | None) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in (name or "")[:_LONGEST_NAME])
    return shown if len(name or "") <= _LONGEST_NAME else f"{shown}..."


def _time(unix_s: float, now: float) -> str:
    """The time of day in UTC, with the date if it is another day."""
    moment, today = datetime.fromtimestamp(unix_s, UTC), datetime.fromtimestamp(now, UTC).date()
    return moment.strftime("%H:%M:%S UTC" if moment.date() == today else "%Y-%m-%d %H:%M:%S UTC")
