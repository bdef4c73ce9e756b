"""What a worker reports of one upstream, and how the reports of a fleet become one. No I/O.

A report is stored as JSON. Which reports still count is decided by the store, from the time of each.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from nightmill.core.engine_gauges import EngineGauges


class ModelHold(msgspec.Struct, frozen=True):
    """Why a model of an upstream is sent no lines but probes, for example "401: wrong key" since 12:00.

    Args:
        reason: what the upstream answered; no key, no prompt and no answer is in it.
        since: when the hold began.
        until: when it ends, None if that depends on the next probe.
        needs_operator: whether it cannot end before a setting is changed, as with a wrong key.
    """

    reason: str
    since: float
    until: float | None = None
    needs_operator: bool = False


class ModelReport(msgspec.Struct, frozen=True):
    """What is known of one model of an upstream, for example 12 in flight of a limit of 64 by "grow".

    Args:
        model: the model as the upstream is sent it; None for lines that name no model.
        limit: the most attempts in flight of all workers together, None while it is not known.
        rule: the name of the rule by which the limit has this value; None where a setting fixes it.
        advice: the setting of the engine that keeps the limit low; None without one.
        in_flight: attempts in flight.
        answered_per_s: lines answered each second.
        tokens_per_s: tokens answered each second.
        held: the hold of the model; None while it is sent lines.
    """

    model: str | None
    limit: int | None = None
    rule: str | None = None
    advice: str | None = None
    in_flight: int = 0
    answered_per_s: float = 0.0
    tokens_per_s: float = 0.0
    held: ModelHold | None = None


class BatchLines(msgspec.Struct, frozen=True):
    """The lines of one batch at one upstream, for example 12 in flight and 3 to be sent again at 14:05.

    Args:
        in_flight: attempts in flight.
        waiting: lines that failed and wait to be sent again.
        next_at: when the first of them may be sent again, in Unix seconds; None without any.
        reason: why it failed, such as `429`; no message of the upstream is in it.
    """

    batch_id: str
    in_flight: int = 0
    waiting: int = 0
    next_at: float | None = None
    reason: str | None = None


class UpstreamReport(msgspec.Struct, frozen=True):
    """What one worker, or a whole fleet, says of one upstream. Times are Unix seconds.

    Args:
        upstream: the name of the upstream.
        at: when the report was made; of several reports, the time of the newest.
        models: the models that the upstream lists; None if its list was not read yet.
        models_read_at: when the list was read; None if it was not.
        in_flight: attempts in flight, of all models.
        waiting: lines that could be sent if there were a slot.
        per_model: one report for each model that was sent lines.
        gauges: the newest reading of the engine's gauges; None if there was none.
        batches: the batches with most lines here; no line of the others is in flight.
        rate_limit: the rate limit because of which no attempt may start now; None without one.
        stalled: why answers can't be written; None while they can.
    """

    upstream: str
    at: float
    models: tuple[str, ...] | None = None
    models_read_at: float | None = None
    in_flight: int = 0
    waiting: int = 0
    per_model: tuple[ModelReport, ...] = ()
    gauges: EngineGauges | None = None
    batches: tuple[BatchLines, ...] = ()
    rate_limit: str | None = None
    stalled: str | None = None


def merged(reports: Iterable[UpstreamReport]) -> UpstreamReport:
    """One report of the newest reports of all workers of one upstream, at least one.

    Counts and rates are summed. Limits, their rules and the gauges concern all workers, so the newest stand.
    The models are those of all lists. A rate limit counts if the newest report names it, and a full disk if
    any report does. A model is held if a worker holds it; of several holds one that needs
    the operator stands, and otherwise the oldest.
    """
    newest_first = sorted(reports, key=lambda report: -report.at)
    lists = [report.models for report in newest_first if report.models is not None]
    entries: defaultdict[str | None, list[ModelReport]] = defaultdict(list)
    for report in newest_first:
        for entry in report.per_model:
            entries[entry.model].append(entry)
    return UpstreamReport(
        upstream=newest_first[0].upstream,
        at=newest_first[0].at,
        models=tuple(sorted({model for listed in lists for model in listed})) if lists else None,
        models_read_at=max(
            (report.models_read_at for report in newest_first if report.models_read_at is not None),
            default=None,
        ),
        in_flight=sum(report.in_flight for report in newest_first),
        waiting=sum(report.waiting for report in newest_first),
        per_model=tuple(
            _merged_model(entries[model])
            for model in sorted(entries, key=lambda model: (model is not None, model or ""))
        ),
        gauges=next((report.gauges for report in newest_first if report.gauges is not None), None),
        batches=_merged_batches(lines for report in newest_first for lines in report.batches),
        rate_limit=newest_first[0].rate_limit,
        stalled=next((report.stalled for report in newest_first if report.stalled is not None), None),
    )


def _merged_batches(reported: Iterable[BatchLines]) -> tuple[BatchLines, ...]:
    found: dict[str, BatchLines] = {}
    for lines in reported:
        before = found.get(lines.batch_id)
        if before is None:
            found[lines.batch_id] = lines
            continue
        first = min((before, lines), key=lambda one: math.inf if one.next_at is None else one.next_at)
        found[lines.batch_id] = BatchLines(
            lines.batch_id,
            before.in_flight + lines.in_flight,
            before.waiting + lines.waiting,
            first.next_at,
            first.reason,
        )
    return tuple(found.values())


def _merged_model(newest_first: Sequence[ModelReport]) -> ModelReport:
    limited = next((entry for entry in newest_first if entry.limit is not None), newest_first[0])
    holds = [entry.held for entry in newest_first if entry.held is not None]
    return ModelReport(
        model=limited.model,
        limit=limited.limit,
        rule=limited.rule,
        advice=limited.advice,
        in_flight=sum(entry.in_flight for entry in newest_first),
        answered_per_s=math.fsum(entry.answered_per_s for entry in newest_first),
        tokens_per_s=math.fsum(entry.tokens_per_s for entry in newest_first),
        held=min(holds, key=lambda hold: (not hold.needs_operator, hold.since), default=None),
    )
