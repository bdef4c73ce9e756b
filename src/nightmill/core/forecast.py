"""When a batch will be answered: rate, range of the end, odds of the deadline, tokens and cost. No I/O.

The data are samples: how many lines were answered at some times. The rate is measured, so it contains what
limits the batch now: the share that other batches take, retries, and the speed of its upstreams.

The model. The rate is the mean of the rates over three windows of the time that was seen, each of which ends
now. While other batches are sent beside the batch, batches take turns, and only the longest window counts.
The estimate of the time that is left is `lines left / rate`, and in addition the mean duration of an attempt,
because the last attempts end one after another.

The range. How far such estimates are off was measured with recorded runs (docs/why.md). The tables below have
the quantiles of the logarithm of the error, by the part of the batch that is answered. They are in units of a
scale, which is the greater the more the rate differs between the windows, the fewer lines were answered, and
the more of the time left is the end of the last attempts.

There is no end while a batch is paused, or when nothing was answered for long.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from nightmill.core.batch import Usage
from nightmill.core.prices import Price

_WINDOWS: Final = (0.1, 0.3, 1.0)
"""Lengths of the windows, as parts of the time that was seen."""
_SHARED_WINDOWS: Final = (1.0,)
"""As `_WINDOWS`, while other batches are sent too: they take turns, so the newest rate says little."""
_SHORTEST_WINDOW_S: Final = 20.0
_LEAST_SCALE: Final = 0.1
_FEWEST_ANSWERED: Final = 3
_SHORTEST_SEEN_S: Final = 5.0
_SHORTEST_STALL_S: Final = 60.0
_STALL_GAPS: Final = 10.0
_NORMAL_90: Final = 1.2816
_SLACK_S: Final = 1.5
"""An answer is counted up to a second late, with the next heartbeat of its worker."""
_MOST_OFF: Final = math.log(20)
"""The time left is never said to be more than so many times the estimate, or less than a part of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How far a batch was at a time.

    Args:
        at: Unix seconds.
        answered: lines with an answer of either kind.
        in_flight: attempts in flight.
    """

    at: float
    answered: int
    input_tokens: int = 0
    output_tokens: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a forecast is made of.

    Args:
        samples: in the order of time; the last one is the present state.
        total: lines of the batch.
        deadline: Unix seconds.
        pauses: begin and end of each pause of the batch, in Unix seconds; the end is None while it lasts.
        is_shared: whether other batches have attempts in flight at the same upstreams.
        goes_on_at: when lines are sent again, in Unix seconds, if none can be sent now; infinite if that is
            not known.
        price: of the batch's model; None if it is not known.
        usage: tokens so far.
    """

    samples: Sequence[Sample]
    total: int
    deadline: float
    pauses: Sequence[tuple[float, float | None]] = ()
    is_shared: bool = False
    goes_on_at: float | None = None
    price: Price | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a batch. Times are Unix seconds; fields are None where nothing can be said.

    Args:
        lines_per_s: the measured rate.
        output_tokens_per_s: as `lines_per_s`.
        ends_at: when all lines are answered; the end is as likely before as after it.
        earliest_at: with `latest_at` a range in which the end is with a probability of 80%.
        deadline_odds: the probability that all lines are answered before the deadline, from 0 to 1.
        usage: tokens so far.
        tokens_to_come: of all lines that are left, input and output together.
        cost: so far.
        cost_to_come: of all lines that are left.
    """

    lines_per_s: float | None = None
    output_tokens_per_s: float | None = None
    ends_at: float | None = None
    earliest_at: float | None = None
    latest_at: float | None = None
    deadline_odds: float | None = None
    usage: Usage = field(default_factory=Usage)
    tokens_to_come: int | None = None
    cost: float | None = None
    cost_to_come: float | None = None


class Estimate(NamedTuple):
    """The time that is left, before errors are taken into account.

    Args:
        progress: the part of the lines that is answered, from 0 to 1.
        scale: the unit of its errors.
    """

    lines_per_s: float
    left_s: float
    progress: float
    scale: float


class Errors(NamedTuple):
    """Quantiles of ln(true time left / estimate) / scale, of batches with at most `progress` answered."""

    progress: float
    low: float
    middle: float
    high: float


_ERRORS_ALONE: Final = (
    Errors(0.05, -2.37, -0.03, 2.30),
    Errors(0.20, -1.48, 0.06, 3.17),
    Errors(0.50, -1.40, -0.17, 2.76),
    Errors(0.80, -1.60, -0.35, 2.53),
    Errors(0.95, -1.41, -0.42, 2.30),
    Errors(1.00, 0.74, 3.06, 5.76),
)
_ERRORS_SHARED: Final = (
    Errors(0.05, -4.13, -1.38, 1.98),
    Errors(0.20, -5.24, 0.19, 4.70),
    Errors(0.50, -5.51, -0.10, 5.18),
    Errors(0.80, -4.34, 0.72, 5.03),
    Errors(0.95, -2.98, 0.65, 9.09),
    Errors(1.00, 0.45, 4.66, 14.47),
)
"""The 10%, 50% and 90% quantiles of batches that are sent alone, and beside others. Printed by
`python -m bench --only forecast`."""


def forecast(outlook: Outlook) -> Forecast:
    """The forecast of a batch in progress."""
    known = _tokens_and_cost(outlook)
    if outlook.goes_on_at == math.inf or any(end is None for _, end in outlook.pauses):
        return known
    samples = active_samples(outlook.samples, outlook.pauses)
    if is_stalled(samples):
        return replace(known, lines_per_s=0.0, output_tokens_per_s=0.0)
    found = estimate(samples, outlook.total, is_shared=outlook.is_shared)
    if found is None:
        return known
    now = max(outlook.samples[-1].at, outlook.goes_on_at or 0.0)
    low_s, middle_s, high_s = range_s(found, is_shared=outlook.is_shared)
    per_line = outlook.usage.output_tokens / max(1, samples[-1].answered)
    return replace(
        known,
        lines_per_s=found.lines_per_s,
        output_tokens_per_s=found.lines_per_s * per_line if outlook.usage.output_tokens else None,
        ends_at=now + middle_s,
        earliest_at=now + low_s,
        latest_at=now + high_s,
        deadline_odds=_odds(outlook.deadline - now, low_s, middle_s, high_s),
    )


def active_samples(
    samples: Sequence[Sample], pauses: Sequence[tuple[float, float | None]]
) -> Sequence[Sample]:
    """The samples with the times of a clock that stands still during the pauses."""
    if not pauses:
        return samples

    def paused_s(at: float) -> float:
        return math.fsum(
            max(0.0, (at if end is None else min(at, end)) - begin) for begin, end in pauses if begin < at
        )

    return [replace(sample, at=sample.at - paused_s(sample.at)) for sample in samples]


def is_stalled(samples: Sequence[Sample]) -> bool:
    """Whether nothing was answered for long, compared with the pace before."""
    if len(samples) < 2 or not samples[-1].answered:
        return False
    last = samples[-1]
    answered_last = next(sample for sample in samples if sample.answered == last.answered)
    gap_s = (last.at - samples[0].at) / last.answered
    return last.at - answered_last.at > max(_SHORTEST_STALL_S, _STALL_GAPS * gap_s)


def estimate(samples: Sequence[Sample], total: int, *, is_shared: bool) -> Estimate | None:
    """The time that is left at the measured rate; None while too little was seen."""
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    seen_s, left = last.at - first.at, total - last.answered
    answered = last.answered - first.answered
    if seen_s < _SHORTEST_SEEN_S or answered < _FEWEST_ANSWERED or left <= 0:
        return None
    shares = _SHARED_WINDOWS if is_shared else _WINDOWS
    rates = [_rate(samples, min(seen_s, max(_SHORTEST_WINDOW_S, share * seen_s))) for share in shares]
    per_s = max(math.fsum(rates) / len(rates), 0.05 * rates[-1])
    logs = [math.log(max(rate, 0.1 * rates[-1])) for rate in rates]
    mean = math.fsum(logs) / len(logs)
    variance = math.fsum((log - mean) ** 2 for log in logs) / len(logs)
    attempt_s = min(seen_s, last.in_flight / per_s)
    left_s = left / per_s + attempt_s
    return Estimate(
        per_s,
        left_s,
        last.answered / total,
        math.sqrt(_LEAST_SCALE**2 + variance / 2 + 1 / answered + (attempt_s / left_s) ** 2),
    )


def range_s(found: Estimate, *, is_shared: bool) -> tuple[float, float, float]:
    """The 10%, 50% and 90% quantiles of the time that is left, in seconds."""
    table = _ERRORS_SHARED if is_shared else _ERRORS_ALONE
    errors = next(errors for errors in table if found.progress <= errors.progress)
    low, middle, high = (
        math.exp(max(-_MOST_OFF, min(_MOST_OFF, error * found.scale)))
        for error in (errors.low, errors.middle, errors.high)
    )
    low_s, middle_s, high_s = found.left_s * low, found.left_s * middle, found.left_s * high
    return max(0.0, low_s - _SLACK_S), middle_s, high_s + _SLACK_S


def _rate(samples: Sequence[Sample], window_s: float) -> float:
    """Lines answered each second in the last `window_s`."""
    last = samples[-1]
    begin = last.at - window_s
    before = after = samples[0]
    for sample in samples:
        if sample.at > begin:
            after = sample
            break
        before = after = sample
    span_s = after.at - before.at
    part = 0.0 if span_s <= 0 else (begin - before.at) / span_s
    answered = before.answered + max(0.0, min(1.0, part)) * (after.answered - before.answered)
    return max(0.0, last.answered - answered) / window_s


def _odds(deadline_in_s: float, low_s: float, middle_s: float, high_s: float) -> float:
    """The probability that the time left, a normal distribution of its logarithm on either side of the
    middle, is below the time to the deadline."""
    if deadline_in_s <= 0:
        return 0.0
    side_s = high_s if deadline_in_s > middle_s else low_s
    sigma = max(1e-6, abs(math.log(max(side_s, 1e-3) / middle_s))) / _NORMAL_90
    return round(0.5 * (1 + math.erf(math.log(deadline_in_s / middle_s) / sigma / math.sqrt(2))), 3)


def _tokens_and_cost(outlook: Outlook) -> Forecast:
    usage, price = outlook.usage, outlook.price
    cost = None if price is None else price.cost(usage)
    answered = outlook.samples[-1].answered if outlook.samples else 0
    if not answered or not usage.total_tokens:
        return Forecast(usage=usage, cost=cost)
    lines = max(0, outlook.total - answered) / answered
    return Forecast(
        usage=usage,
        tokens_to_come=round(lines * usage.total_tokens),
        cost=cost,
        cost_to_come=None if cost is None else lines * cost,
    )
