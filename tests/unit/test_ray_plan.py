"""How many workers a Ray cluster should have, and who comes and goes."""

import pytest

from nightmill.core.batch import Status
from nightmill.runtime.ray.plan import ActorState, Moves, ScaleDownDelay, is_needed, moves, wanted_workers
from nightmill.settings import RaySettings
from nightmill.store import Backlog

BOUNDS = RaySettings(min_workers=0, max_workers=4, segments_per_worker=10)
WAITING, AT_WORK, LEAVING = ActorState.WAITING, ActorState.AT_WORK, ActorState.LEAVING
SILENT, MISMATCHED = ActorState.SILENT, ActorState.MISMATCHED


def backlog(waiting: int = 0, leased: int = 0, **batches: int) -> Backlog:
    return Backlog({Status(status): count for status, count in batches.items()}, waiting, leased)


@pytest.mark.parametrize(
    ("pending", "wanted"),
    [
        (backlog(), 0),
        (backlog(completed=3), 0),
        (backlog(in_progress=1), 0),  # its last segment is done: only the finalizer has work
        (backlog(validating=1), 1),  # nodes take their time: the first is asked for while the file is read
        (backlog(1), 1),
        (backlog(0, 1), 1),
        (backlog(10), 1),
        (backlog(6, 5), 2),
        (backlog(1_000_000), 4),
    ],
)
def test_the_backlog_says_how_many_workers_are_wanted(pending, wanted):
    assert wanted_workers(pending, BOUNDS) == wanted
    assert is_needed(pending) == (wanted > 0)


def test_some_may_be_kept_while_nothing_is_to_do():
    assert wanted_workers(backlog(), BOUNDS.model_copy(update={"min_workers": 2})) == 2


def test_more_come_at_once_and_fewer_only_after_a_while():
    patience = ScaleDownDelay(10.0)
    assert patience.target(0, present=0, now=0.0) == 0
    assert patience.target(3, present=0, now=11.0) == 3
    assert patience.target(1, present=3, now=12.0) == 3
    assert patience.target(2, present=3, now=15.0) == 3
    assert patience.target(0, present=3, now=21.5) == 2
    assert patience.target(4, present=2, now=22.0) == 4
    assert patience.target(0, present=4, now=33.0) == 0


def test_a_launcher_that_starts_anew_sends_nobody_away_before_it_has_looked_for_a_while():
    patience = ScaleDownDelay(10.0)
    assert patience.target(0, present=3, now=100.0) == 3
    assert patience.target(4, present=3, now=101.0) == 4
    assert patience.target(0, present=4, now=111.5) == 0


@pytest.mark.parametrize(
    ("present", "target", "what"),
    [
        ({}, 0, Moves()),
        ({}, 2, Moves(start=(0, 1))),
        ({0: AT_WORK, 2: WAITING}, 4, Moves(start=(1, 3))),
        ({0: AT_WORK, 1: AT_WORK}, 2, Moves()),
        ({0: AT_WORK, 1: AT_WORK, 2: AT_WORK}, 1, Moves(leave=(2, 1))),
        ({0: WAITING, 1: AT_WORK, 2: WAITING}, 1, Moves(drop=(2, 0))),
        ({0: WAITING, 1: AT_WORK, 2: AT_WORK}, 1, Moves(leave=(2,), drop=(0,))),
        ({0: LEAVING}, 1, Moves(start=(1,))),
        ({0: LEAVING}, 0, Moves()),
        ({0: SILENT, 1: AT_WORK}, 2, Moves(start=(2,), drop=(0,))),
        ({0: SILENT, 1: MISMATCHED}, 0, Moves(drop=(0, 1))),
    ],
)
def test_who_starts_who_leaves_and_who_is_dropped(present, target, what):
    assert moves(present, target=target) == what
