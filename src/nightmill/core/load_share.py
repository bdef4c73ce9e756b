"""The share of an upstream that batches may use, beside other users of the server. No I/O.

With a fixed concurrency the limit is the share of it. With an adaptive one it is the share of the limit that
was **found** at full load: in quiet hours, in which the share does not apply, or, without quiet hours, in a
short search at full load, at first and then once an hour while there is work.

While the share applies, `advance` runs with the share as the highest limit. So refusals, time-outs and the
engine's gauges lower the limit, and the limit then grows back to the share. The found limit does not change,
because fewer attempts in flight are no evidence about it.
"""

import math
from typing import Final

import msgspec
from msgspec.structs import replace

from nightmill.core.adaptive_limit import advance
from nightmill.core.limit_rules import LimitRule
from nightmill.core.limit_state import (
    FIRST_SHRINK_PAUSE,
    LONGEST_SHRINK_PAUSE,
    Bounds,
    LimitState,
    Observed,
)
from nightmill.core.quiet_hours import QuietHours

_SEARCH_EVERY_S = 3600.0
_LONGEST_SEARCH_S = 600.0
_FOUND: Final = frozenset({LimitRule.PLATEAU, LimitRule.QUEUE, LimitRule.CEILING})


class LoadShare(msgspec.Struct, frozen=True):
    """The share of an upstream in effect, for example half of the attempts by day.

    Args:
        part: of the attempts, above 0 and at most 1; 1 in quiet hours.
        may_search: whether the limit may be searched for at full load although the part is below 1.
    """

    part: float
    may_search: bool = False

    def of(self, limit: int) -> int:
        """The part of a limit: rounded down, at least 1."""
        return max(1, math.floor(self.part * limit + 1e-9))


def load_share(share: float, quiet_hours: QuietHours | None, *, unix_s: float) -> LoadShare | None:
    """The share that applies at a time; None if none ever applies.

    Args:
        share: the part outside of the quiet hours.
    """
    if share >= 1:
        return None
    if quiet_hours is None:
        return LoadShare(share, may_search=True)
    return LoadShare(1.0 if quiet_hours.contains(unix_s) else share)


def advance_shared(
    state: LimitState | None,
    observed: Observed,
    *,
    share: LoadShare | None,
    in_flight: int,
    bounds: Bounds,
    now: float,
) -> LimitState:
    """The limit after a report, as `advance` with a share of the upstream."""
    if share is None or share.part >= 1:
        state = None if state is None else _at_full_load(state, in_flight, now)
        state = advance(state, observed, in_flight=in_flight, bounds=bounds, now=now)
        return replace(state, found_at=now) if state.rule in _FOUND else state
    if share.may_search and (state is None or _is_search_due(state, observed, now)):
        state = _searching(state, bounds, in_flight, now)
    search_at = None if state is None else state.search_at
    if share.may_search and search_at is not None:
        state = advance(state, observed, in_flight=in_flight, bounds=bounds, now=now)
        is_over = state.rule in _FOUND and state.since >= search_at
        if not is_over and now - search_at < _LONGEST_SEARCH_S:
            return state
        state = replace(state, found_at=now, search_at=None)
    if state is None:
        state = LimitState.at_start(min(bounds.start, bounds.most), now)
    state = _at_share(state, share, in_flight, now)
    most = share.of(min(state.found, bounds.most))
    return _advance_below(state, observed, in_flight=in_flight, most=most, now=now)


def _is_search_due(state: LimitState, observed: Observed, now: float) -> bool:
    if state.search_at is not None or not observed.lacking:
        return False
    return state.found_at is None or not 0 <= now - state.found_at < _SEARCH_EVERY_S


def _searching(state: LimitState | None, bounds: Bounds, in_flight: int, now: float) -> LimitState:
    """The state at the beginning of a search: the limit that was found is measured, then a higher one."""
    if state is None:
        state = LimitState.at_start(min(bounds.start, bounds.most), now)
    state = _at_full_load(state, in_flight, now)
    return replace(
        state, search_at=now, since=now, grow_in=0, shrink_in=FIRST_SHRINK_PAUSE, rule=LimitRule.START
    )


def _at_full_load(state: LimitState, in_flight: int, now: float) -> LimitState:
    """The state without a share: the found limit is in effect."""
    if not state.found:
        return state
    state = state.moved(state.found, LimitRule.START, now, in_flight)
    return replace(state, found=0, part=1.0, is_queued=False, shrink_in=FIRST_SHRINK_PAUSE)


def _at_share(state: LimitState, share: LoadShare, in_flight: int, now: float) -> LimitState:
    """The state with the share in effect."""
    if state.part == share.part:
        return state
    found = state.found or state.base or state.limit  # a higher or lower limit may just be tried
    state = state.moved(share.of(found), LimitRule.SHARE, now, in_flight)
    return replace(state, found=found, part=share.part, search_at=None, is_queued=False)


def _advance_below(
    state: LimitState, observed: Observed, *, in_flight: int, most: int, now: float
) -> LimitState:
    """`advance` with the share as the highest limit, and without tries of lower ones."""
    after = advance(
        replace(state, shrink_in=LONGEST_SHRINK_PAUSE, worse_at=0),
        observed,
        in_flight=in_flight,
        bounds=Bounds(most, most),
        now=now,
    )
    rule = LimitRule.SHARE if after.limit >= most else after.rule
    return replace(after, found=state.found, part=state.part, found_at=state.found_at, rule=rule)
