"""The adaptive concurrency limit: how many attempts may be in flight to an upstream, found by measuring.

Pure: no I/O, and the time is an argument. Workers report what they have seen since their last report
(`Observed`), in any order. `advance` adds the report to the `LimitState` that all workers share, and changes
the limit when there is evidence:

    report ──▶ window ──▶ full? ──▶ engine gauges ──▶ goodput against the limit before ──▶ keep, grow, revert
      └── refused, timed out, stalled: cut at once

A **window** is as many answers as the limit has slots. After a change of the limit, the outcomes of attempts
that were sent before are not counted. **Goodput** is answered tokens per second, or answers per second where
tokens are unknown; by Little's law it is the number in flight times the tokens per busy second, which does
not depend on how answers bunch, and hardly on how long they are. The noise between windows is measured as
well, and a difference is believed after enough windows.

The search doubles the limit while goodput grows. Later it tries a higher limit (`probe`) or a lower one after
pauses that grow while the tries fail. A goodput that changes at the same limit makes the next try immediate.
Of two limits with the same goodput the lower one stays. A refusal lowers the limit by one slot each, so the
limit is then what the upstream accepts; workers do not use a refused slot again before their next grant.

Gauges make the search shorter: a queue in the engine says that the limit is high enough. They also show
pressure on the KV cache, and other clients whose requests wait.

All numbers that a limit remembers are in `LimitState`, which is stored as JSON of less than 1 KB. A limit
with no report for an hour starts anew at half. Not here: rate limits (`core/rate_limit.py`) and the division
of the limit among workers (`core/concurrency.py`).
"""

import math
from typing import Final

from msgspec.structs import replace

from nightmill.core.engine_gauges import advice_on
from nightmill.core.limit_rules import LimitRule
from nightmill.core.limit_state import (
    FIRST_GROW_PAUSE,
    FIRST_SHRINK_PAUSE,
    LONGEST_SHRINK_PAUSE,
    Bounds,
    EvidenceWindow,
    LimitState,
    Observed,
)

__all__ = ["Bounds", "LimitState", "Observed", "advance"]

_SHORTEST_WINDOW_S = 0.05
_ROUNDING_S = 1e-6
_FEWEST_ANSWERS = 4  # of a window
_FORGOTTEN_AFTER_S = 3600.0
_JITTER_S = 5.0  # transactions that wait for each other may be out of order
_GAP_S = 1.0  # without a report, beyond the time that the next report covers: time without work

# Evidence.
_NEW_NOISE = 0.25
_WANTED_ERROR = 0.035  # relative standard error of a goodput before small differences are believed
_MOST_WINDOWS = 8
_SHIFT = 0.08  # relative change of goodput at the same limit that says that the upstream has changed
_CLEARLY = 0.1
_GAIN = 0.08  # least gain of goodput for a doubled limit
_LEAST_GAIN = 0.02
_LOSS = -0.05
_NEAR = 1.3  # ratio of a limit that is worse to one that is not, between which no other limit is tried
_TOO_SMALL = 1.13  # ratio of limits whose goodput is not compared
_KEPT = 0.97  # part of the best goodput that a lower limit must keep
_FORGET_PEAK = 1 / 64  # for each window

# Steps and pauses; pauses are in windows.
_DOUBLE = 1.0
_STEP = 0.25
_CAREFUL_STEP = 1 / 16
_LOWER = 0.75
_LONGEST_GROW_PAUSE = 16

# Cuts.
_TOLERATED = 0.02  # refusals for each answer or slot that are taken for chance
_FEW = 0.04  # refusals for each slot after which growth goes on soon
_TOLERATED_TIMEOUTS = 0.05
_STALL_S = 10.0
_STALL_LATENCIES = 4
_PREEMPTED = 0.5  # preemptions for each answer
_FULL_CACHE = 0.95
_LOST_HITS = 0.1
_PRESSURE_CUT = 0.8
_QUEUE = 0.5  # least mean of waiting requests that counts as a queue
_QUEUE_BEGINS = 0.1  # part of the running requests: fewer have only just arrived
_QUEUE_GONE = 0.05
_QUEUE_MARGIN = 0.15
_QUEUE_SLOTS = 4  # least margin: requests of equal length end together, and the next ones must wait there
_SPREAD_OF_OTHERS = 2.0  # standard deviations of a number that comes at random, which stay free
_FEW_OTHERS = 2.0  # requests of other clients within the error of gauges that are read between reports


_CHANGES: Final = frozenset(
    {LimitRule.START, LimitRule.GROW, LimitRule.PROBE, LimitRule.SHRINK, LimitRule.REVERT}
)


def advance(
    state: LimitState | None, observed: Observed, *, in_flight: int, bounds: Bounds, now: float
) -> LimitState:
    """The limit after a report.

    Args:
        state: None if the upstream is new.
        in_flight: attempts in flight over all workers.
        now: seconds; the same clock for all workers.
    """
    if state is not None and state.at - _JITTER_S < now < state.at:
        now = state.at
    state = _remembered(state, bounds, now)
    if not observed.outcomes and observed.gauges is None and not in_flight:
        return state
    state = _with_report(state, observed, in_flight, now)
    cut = _cut(state, observed, in_flight, now)
    if cut is not None:
        return cut
    window = state.window
    is_full = window.answered >= max(state.limit, _FEWEST_ANSWERS)
    if is_full and now - window.begun_at >= _SHORTEST_WINDOW_S - _ROUNDING_S:
        return _decide(state, in_flight, bounds, now)
    if window.unacknowledged and observed.outcomes and state.rule in _CHANGES:
        return replace(state, rule=LimitRule.ACKNOWLEDGEMENT)
    return state


def _remembered(state: LimitState | None, bounds: Bounds, now: float) -> LimitState:
    if state is None:
        return LimitState.at_start(min(bounds.start, bounds.most), now)
    if now < state.at:  # the clock was set back
        window = EvidenceWindow(now, state.window.unacknowledged)
        state = replace(state, at=now, since=min(state.since, now), answered_at=now, window=window)
    if now - state.at > _FORGOTTEN_AFTER_S:
        return LimitState.at_start(max(1, min(state.limit // 2, bounds.most)), now)
    if state.limit > bounds.most:
        return state.moved(bounds.most, LimitRule.CEILING, now, 0)
    return state


# The window.


def _with_report(state: LimitState, observed: Observed, in_flight: int, now: float) -> LimitState:
    window = state.window
    if now - state.at > observed.over_s + _GAP_S:
        window = EvidenceWindow(now - observed.over_s, min(window.unacknowledged, in_flight))
        state = replace(state, answered_at=now)
    # Only the part of the report after the beginning of the window counts, and of this part what remains
    # after the outcomes of attempts that were sent before.
    part = 1.0
    if observed.over_s > now - window.begun_at:
        part = max(0.0, now - window.begun_at) / observed.over_s
    outcomes = observed.outcomes * part
    begun_at = window.begun_at
    unacknowledged = max(0.0, window.unacknowledged - outcomes)
    if window.unacknowledged and outcomes:
        used = (window.unacknowledged - unacknowledged) / outcomes
        part *= 1 - used
        if not unacknowledged:
            begun_at = max(begun_at, now - min(observed.over_s, now - begun_at) * (1 - used))
    answered = observed.answered * part
    window = replace(
        window,
        begun_at=begun_at,
        unacknowledged=unacknowledged,
        answered=window.answered + answered,
        tokens=window.tokens + observed.tokens * part,
        busy_s=window.busy_s + observed.busy_s * part,
        lacking=window.lacking + answered * observed.lacking,
        refused=window.refused + observed.refused,
        timed_out=window.timed_out + observed.timed_out,
        reports=window.reports + 1,
        in_flight=window.in_flight + in_flight,
    )
    if observed.answered:
        state = replace(state, latency_s=observed.busy_s / observed.answered, answered_at=now)
    gauges = observed.gauges
    if gauges is None or (state.rule == LimitRule.YIELD and unacknowledged):  # the queue is of before
        return replace(state, window=window, at=now)
    lost = 0
    if gauges.preemptions is not None and state.preemptions is not None:
        lost = max(0, gauges.preemptions - state.preemptions)
    window = replace(
        window,
        readings=window.readings + 1,
        running=window.running + gauges.running,
        waiting=window.waiting + gauges.waiting,
        preempted=window.preempted + lost,
        kv_use=gauges.kv_use,
        hit_share=gauges.hit_share,
        engine=gauges.engine,
    )
    state = state.with_running(gauges, in_flight)
    return replace(state, window=window, at=now, preemptions=gauges.preemptions)


# Cuts.


def _cut(state: LimitState, observed: Observed, in_flight: int, now: float) -> LimitState | None:
    window, limit = state.window, state.limit
    proven = 1.0 if state.windows and not state.base else 0.0  # one refusal is taken for chance
    tolerated = max(_TOLERATED * max(window.answered, limit), proven)
    if observed.refused and window.refused > tolerated:
        is_total = not in_flight and not observed.answered
        floor = limit // 2 if is_total else min(in_flight, limit // 2)
        lower = max(1, floor, limit - observed.refused)
        pause, stride = state.grow_pause, _CAREFUL_STEP if lower >= limit / 2 else _STEP
        if is_total:
            pause, stride = 1, _DOUBLE
        elif window.refused <= _FEW * limit:  # by chance, perhaps
            pause, stride = 1, max(stride, state.stride / 2)
        state = replace(
            state,
            stride=stride,
            grow_in=pause,
            grow_pause=min(2 * state.grow_pause, _LONGEST_GROW_PAUSE),
            shrink_in=LONGEST_SHRINK_PAUSE,
            peak=0.0,
        )
        return state.moved(lower, LimitRule.REFUSED, now, in_flight)
    if observed.timed_out and window.timed_out > _TOLERATED_TIMEOUTS * window.answered:
        return _halved(state, LimitRule.TIMED_OUT, now, in_flight)
    quiet_s = now - state.answered_at
    if state.latency_s and in_flight and quiet_s > max(_STALL_S, _STALL_LATENCIES * state.latency_s):
        state = replace(state, answered_at=now)  # so that the next cut takes as long again
        return _halved(state, LimitRule.STALLED, now, in_flight)
    return None


def _halved(state: LimitState, rule: LimitRule, now: float, in_flight: int) -> LimitState:
    state = replace(state, stride=_STEP, grow_in=FIRST_GROW_PAUSE, shrink_in=FIRST_SHRINK_PAUSE, peak=0.0)
    return state.moved(max(1, state.limit // 2), rule, now, in_flight)


# Decisions at the end of a window.


def _decide(state: LimitState, in_flight: int, bounds: Bounds, now: float) -> LimitState:
    window = state.window
    state, is_decided = _by_engine(state, in_flight, now)
    if is_decided:
        return state
    measured = window.goodput(state.limit, now)
    if measured is None:
        return replace(state, rule=LimitRule.INPUT_BOUND, window=EvidenceWindow(now))
    by_tokens = window.tokens > 0
    if by_tokens != state.by_tokens:  # nothing measured before can be compared
        state = replace(
            state, by_tokens=by_tokens, goodput=0.0, windows=0, base=0, base_goodput=0.0, peak=0.0
        )
    state = replace(state, window=EvidenceWindow(now))
    if state.windows:
        deviation = (measured / state.goodput - 1) ** 2
        if not state.base and state.windows > 1 and deviation > max(_SHIFT**2, 9 * state.noise):
            direction = 1 if measured > state.goodput else -1
            shifts = state.shifts + direction if state.shifts * direction >= 0 else direction
            if abs(shifts) < 2:
                return replace(state, shifts=shifts, noise=state.noise)
            return _shifted(state, measured)
        noise = (1 - _NEW_NOISE) * state.noise + _NEW_NOISE * deviation
        state = replace(state, noise=noise, shifts=0)
    windows = min(state.windows + 1, _MOST_WINDOWS)
    goodput = state.goodput + (measured - state.goodput) / windows
    state = replace(state, goodput=goodput, windows=windows)
    if state.base and state.base < state.limit:
        return _judge_higher(state, in_flight, bounds, now)
    if state.base:
        return _judge_lower(state, in_flight, now)
    state = replace(state, peak=max(goodput, state.peak * (1 - _FORGET_PEAK)))
    return _next_try(state, in_flight, bounds, now)


def _shifted(state: LimitState, measured: float) -> LimitState:
    """The upstream has become faster or slower at the same limit: the next tries come soon."""
    ratio = measured / state.goodput
    state = replace(
        state,
        goodput=measured,
        windows=1,
        shifts=0,
        peak=state.peak * ratio,
        grow_pause=FIRST_GROW_PAUSE,
        worse_at=0,
    )
    if ratio > 1:
        return replace(state, grow_in=0, stride=_DOUBLE)
    return replace(state, shrink_in=0, shrink_pause=FIRST_SHRINK_PAUSE)


def _is_sure(state: LimitState) -> bool:
    return state.windows >= min(_MOST_WINDOWS, 2 * state.noise / _WANTED_ERROR**2)


def _clear_difference(state: LimitState) -> float:
    """The relative difference of goodput that is believed after the windows so far."""
    return max(_CLEARLY, 3 * math.sqrt(2 * state.noise / state.windows))


def _judge_higher(state: LimitState, in_flight: int, bounds: Bounds, now: float) -> LimitState:
    ratio = state.limit / state.base
    gain = state.goodput / state.base_goodput - 1
    wanted = max(_LEAST_GAIN, _GAIN * (ratio - 1))
    is_strong = gain >= (ratio - 1) / 2
    is_sure = _is_sure(state) or gain - wanted > _clear_difference(state)
    if ratio <= _TOO_SMALL:  # refusals decide, because the gain cannot be measured
        is_sure, wanted = True, -_clear_difference(state)
        is_strong = gain >= wanted
    if is_strong or (is_sure and gain >= wanted):
        state = replace(
            state,
            advice=None,
            base=0,
            base_goodput=0.0,
            peak=max(state.peak, state.goodput),
            stride=min(_DOUBLE, 2 * state.stride) if is_strong and not state.is_yielding else state.stride,
            grow_in=0,
            grow_pause=FIRST_GROW_PAUSE,
            shrink_in=LONGEST_SHRINK_PAUSE if is_strong else FIRST_SHRINK_PAUSE,
            rule=LimitRule.CONFIRM,
        )
        return _next_try(state, in_flight, bounds, now)
    if is_sure or gain - wanted < -_clear_difference(state):
        state = replace(
            state,
            worse_at=state.limit if gain < _LOSS else state.worse_at,
            stride=max(min(_STEP, state.stride), state.stride / 2),
            grow_in=state.grow_pause,
            grow_pause=min(2 * state.grow_pause, _LONGEST_GROW_PAUSE),
        )
        return _reverted(state, now, in_flight)
    return replace(state, rule=LimitRule.PROBE)


def _judge_lower(state: LimitState, in_flight: int, now: float) -> LimitState:
    best = max(state.base_goodput, state.peak)
    is_sure = _is_sure(state)
    if is_sure and state.goodput >= _KEPT * best:
        return replace(
            state,
            base=0,
            base_goodput=0.0,
            shrink_in=1,
            shrink_pause=FIRST_SHRINK_PAUSE,
            grow_in=state.grow_pause,
            stride=min(state.stride, _STEP),
            rule=LimitRule.CONFIRM,
        )
    if is_sure or state.goodput < (1 - _clear_difference(state)) * state.base_goodput:
        state = replace(
            state,
            shrink_in=state.shrink_pause,
            shrink_pause=min(2 * state.shrink_pause, LONGEST_SHRINK_PAUSE),
        )
        return _reverted(state, now, in_flight)
    return replace(state, rule=LimitRule.SHRINK)


def _reverted(state: LimitState, now: float, in_flight: int) -> LimitState:
    goodput = state.base_goodput
    return replace(state.moved(state.base, LimitRule.REVERT, now, in_flight), goodput=goodput, windows=1)


def _next_try(state: LimitState, in_flight: int, bounds: Bounds, now: float) -> LimitState:
    grow_in, shrink_in = state.grow_in - 1, state.shrink_in - 1
    limit, goodput = state.limit, state.goodput
    if limit < state.worse_at <= _NEAR * limit and grow_in < 0:
        state, grow_in = replace(state, worse_at=0), _LONGEST_GROW_PAUSE
    if grow_in < 0 and limit < bounds.most:
        higher = min(bounds.most, limit + max(1, int(limit * state.stride)))
        if state.worse_at > limit:
            higher = min(higher, (limit + state.worse_at + 1) // 2)
        rule = LimitRule.GROW if state.stride == _DOUBLE else LimitRule.PROBE
        state = replace(state, grow_in=0, shrink_in=max(1, shrink_in))
        return replace(state.moved(higher, rule, now, in_flight), base=limit, base_goodput=goodput)
    if shrink_in < 0 and limit > 1 and not state.is_queued:  # a short queue needs no lower limit
        state = replace(state, shrink_in=0, grow_in=max(1, grow_in))
        lower = min(limit - 1, math.ceil(limit * _LOWER))
        return replace(state.moved(lower, LimitRule.SHRINK, now, in_flight), base=limit, base_goodput=goodput)
    rule = LimitRule.CEILING if limit >= bounds.most else LimitRule.PLATEAU
    if state.is_queued:
        rule = LimitRule.QUEUE
    return replace(state, grow_in=max(0, grow_in), shrink_in=max(0, shrink_in), rule=rule)


# Engine gauges.


def _by_engine(state: LimitState, in_flight: int, now: float) -> tuple[LimitState, bool]:
    """What the engine's gauges say about the limit, and whether that decides the window."""
    window, limit = state.window, state.limit
    if not window.readings:
        return state, False
    running, waiting = window.running / window.readings, window.waiting / window.readings
    ours = window.in_flight / window.reports
    hit_share = window.hit_share or 0.0
    has_lost_hits = hit_share < state.hit_share - _LOST_HITS and (window.kv_use or 0.0) >= _FULL_CACHE
    state = replace(state, hit_share=max(hit_share, state.hit_share * (1 - _FORGET_PEAK)))
    if has_lost_hits or window.preempted > max(1.0, _PREEMPTED * window.answered):
        pause = state.grow_pause
        state = replace(
            state,
            hit_share=hit_share,
            stride=_CAREFUL_STEP,
            grow_in=pause,
            grow_pause=min(2 * pause, _LONGEST_GROW_PAUSE),
            peak=0.0,
            is_queued=False,
            advice=advice_on(window.engine, running=running, waiting=waiting, kv_use=1.0),
        )
        lower = max(1, min(limit - 1, int(limit * _PRESSURE_CUT)))
        return state.moved(lower, LimitRule.PRESSURE, now, in_flight), True
    others = running + waiting - ours
    has_others = others > max(_FEW_OTHERS, _QUEUE_MARGIN * ours)
    if state.is_yielding and not has_others:  # all the room is free
        state = replace(
            state, is_yielding=False, stride=_DOUBLE, grow_in=0, grow_pause=FIRST_GROW_PAUSE, worse_at=0
        )
    part = _QUEUE_GONE if state.is_queued else _QUEUE_BEGINS
    if waiting < max(_QUEUE, part * running):
        if state.is_queued:  # the queue is gone: there is room again
            stride = _CAREFUL_STEP if state.is_yielding else _STEP
            state = replace(state, is_queued=False, stride=stride, grow_in=0, grow_pause=FIRST_GROW_PAUSE)
        return replace(state, advice=state.advice_without_queue or state.advice), False
    if has_others:
        room = running - others
        lower = limit - math.ceil(waiting)
        if state.is_yielding:  # so they did not only seem to be there
            lower = min(limit - 1, int(room - _SPREAD_OF_OTHERS * math.sqrt(others)))
        lower = max(1, limit // 2, lower)
        state = replace(state, is_queued=True, is_yielding=True, worse_at=max(lower + 1, int(room)))
        return state.moved(lower, LimitRule.YIELD, now, in_flight), True
    advice = advice_on(window.engine, running=running, waiting=waiting, kv_use=window.kv_use)
    state = replace(state, is_queued=True, advice=advice)
    lower = max(1, math.ceil(running + max(_QUEUE_MARGIN * running, min(running, _QUEUE_SLOTS))))
    if lower < limit:
        pause = state.grow_pause
        state = replace(state, grow_in=pause, grow_pause=min(2 * pause, _LONGEST_GROW_PAUSE), stride=_STEP)
        return state.moved(lower, LimitRule.STEP_DOWN, now, in_flight), True
    return state, False
