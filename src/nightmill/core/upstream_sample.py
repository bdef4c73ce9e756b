"""Samples of an upstream over time: its limit, and how much was answered and refused. No I/O.

A sample holds counts since the first start, which only grow, so that samples can be left out: the rate
between any two that remain is still exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from nightmill.core.counts import ANSWERED, UpstreamCounts
from nightmill.core.failure import FailureKind
from nightmill.core.limit_rules import LimitRule
from nightmill.core.upstream_report import UpstreamReport

SAMPLED_EVERY_S: Final = 5
KEPT_S: Final = 7 * 86_400
"""Older samples are deleted."""
THINNED: Final = ((600, 60), (6 * 3_600, 900))
"""From an age on, only the samples on a grid stay: pairs of the age and the grid, in seconds."""
MOST_SAMPLES: Final = 600 // 5 + 6 * 3_600 // 60 + KEPT_S // 900 + 60
"""At most so many samples of an upstream are kept; some more, because they are thinned in intervals."""
_RISING: Final = frozenset(
    {LimitRule.START, LimitRule.GROW, LimitRule.PROBE, LimitRule.REVERT, LimitRule.SHARE}
)
_FALLING: Final = frozenset(
    {
        LimitRule.SHRINK,
        LimitRule.REVERT,
        LimitRule.REFUSED,
        LimitRule.TIMED_OUT,
        LimitRule.PRESSURE,
        LimitRule.STALLED,
        LimitRule.STEP_DOWN,
        LimitRule.YIELD,
        LimitRule.SHARE,
    }
)
_REFUSED: Final = FailureKind.LOAD.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSample:
    """An upstream at one time, for example at most 64 in flight by "grow" after 12,000 answers.

    Args:
        at: Unix seconds.
        concurrency_limit: the most attempts in flight, of all models together; None while it is not known.
        rule: the rule by which the limit has its value; None if a setting fixes it, or if several models
            have a limit of their own.
        in_flight: attempts in flight.
        waiting: lines that could be sent if there were a slot.
        answered: attempts that were answered, since the first start.
        refused: as `answered`, those refused with 429, 503 or 529.
        failed: as `answered`, those that failed in another way.
        output_tokens: as `answered`, of the answers that say how many.
        engine_running: requests that the engine computes; None if it does not say.
        engine_waiting: requests in the engine's queue; None if it does not say.
        kv_use: the used part of the engine's KV cache; None if it does not say.
    """

    at: float
    concurrency_limit: int | None = None
    rule: str | None = None
    in_flight: int = 0
    waiting: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    output_tokens: int = 0
    engine_running: int | None = None
    engine_waiting: int | None = None
    kv_use: float | None = None


@dataclass(frozen=True, slots=True)
class LimitChange:
    """An upstream's limit was another one than at the sample before, for example 32 after 16 by "grow".

    Args:
        at: Unix seconds.
        before: the limit before; None if it was not known.
        rule: the rule of the change; None if another rule has been applied since.
    """

    at: float
    before: int | None
    after: int
    rule: str | None


def sampled(report: UpstreamReport, counts: UpstreamCounts, *, at: float) -> UpstreamSample:
    """A sample of the merged reports of all workers and the counts of all processes."""
    limits = [model.limit for model in report.per_model if model.limit is not None]
    rules = [model.rule for model in report.per_model if model.limit is not None]
    gauges = report.gauges
    attempts = counts.attempts
    answered, refused = attempts.get(ANSWERED, 0), attempts.get(_REFUSED, 0)
    return UpstreamSample(
        at=at,
        concurrency_limit=sum(limits) if limits else None,
        rule=(rules[0] or None) if len(rules) == 1 else None,
        in_flight=report.in_flight,
        waiting=report.waiting,
        answered=answered,
        refused=refused,
        failed=sum(attempts.values()) - answered - refused,
        output_tokens=counts.output_tokens,
        engine_running=None if gauges is None else gauges.running,
        engine_waiting=None if gauges is None else gauges.waiting,
        kv_use=None if gauges is None else gauges.kv_use,
    )


def thinned(samples: Sequence[UpstreamSample], *, over_s: float, most: int) -> Sequence[UpstreamSample]:
    """The samples; of more than `most` only the first of each part of the grid that their age leaves anyway.

    As time goes on the same ones are chosen, so what is shown of them changes once in each part.

    Args:
        over_s: the age of the oldest.
    """
    grids_s = [grid_s for age_s, grid_s in THINNED if over_s > age_s]
    if len(samples) <= most or not grids_s:
        return samples
    grid_s = grids_s[-1]
    firsts: dict[float, UpstreamSample] = {}
    for sample in samples:
        firsts.setdefault(sample.at // grid_s, sample)
    return list(firsts.values())


def rates(samples: Sequence[UpstreamSample], name: str) -> list[float | None]:
    """How fast a count grew up to each sample, per second; None for the first.

    Args:
        samples: in the order of time.
        name: of the count, such as `answered`.
    """
    grown: list[float | None] = [None] if samples else []
    for before, after in pairwise(samples):
        elapsed_s = after.at - before.at
        growth = getattr(after, name) - getattr(before, name)
        grown.append(round(growth / elapsed_s, 3) if elapsed_s > 0 and growth >= 0 else None)
    return grown


def limit_changes(samples: Sequence[UpstreamSample], *, most: int) -> list["LimitChange"]:
    """The newest changes of the limit between two samples, the newest first."""
    changes: list[LimitChange] = []
    for before, after in pairwise(samples):
        old, new = before.concurrency_limit, after.concurrency_limit
        if new is None or new == old:
            continue
        explaining = _RISING if old is None or new > old else _FALLING
        changes.append(LimitChange(after.at, old, new, after.rule if after.rule in explaining else None))
    return changes[::-1][:most]
