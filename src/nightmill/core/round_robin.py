"""Deficit round robin: members take turns, each of some work. No I/O.

What the members are, and how much work a turn has, belongs to `schedule`.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

_MOST_REMEMBERED: Final = 4_096


class Member:
    """A project or a batch in a round robin.

    Attributes:
        deficit: work that may still be sent in this turn; below 0 after a turn that was too long.
        turn_work: added to the deficit for each turn; may change while the member waits.
    """

    __slots__ = ("deficit", "key", "turn_work")

    def __init__(self, key: Hashable, *, turn_work: float) -> None:
        self.key = key
        self.turn_work = self.deficit = turn_work


M = TypeVar("M", bound=Member)


class RoundRobin(Generic[M]):
    """Deficit round robin. A new member has its first turn before the next turn of the others.

    A member that left with work above its turn is remembered, so that leaving and joining gains nothing.
    """

    __slots__ = ("_deficits", "_is_first_turn_next", "_new", "_old")

    def __init__(self) -> None:
        self._new: deque[M] = deque()
        self._old: deque[M] = deque()
        self._is_first_turn_next = True
        self._deficits: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def __iter__(self) -> Iterator[M]:
        yield from self._new
        yield from self._old

    def join(self, member: M) -> None:
        deficit = self._deficits.pop(member.key, None)
        if deficit is None:
            self._new.append(member)
            return
        member.deficit = min(deficit, member.turn_work)
        self._old.append(member)

    def leave(self, member: M) -> None:
        is_new = member in self._new
        (self._new if is_new else self._old).remove(member)
        self._is_first_turn_next = not is_new
        self._deficits[member.key] = member.deficit
        if len(self._deficits) > _MOST_REMEMBERED:
            del self._deficits[next(iter(self._deficits))]

    def next(self) -> M:
        """The member whose turn it is. There must be a member."""
        if self._new and (self._is_first_turn_next or not self._old):
            return self._new[0]
        old = self._old
        for _ in range(len(old)):
            if old[0].deficit > 0:
                return old[0]
            old[0].deficit += old[0].turn_work
            old.rotate(-1)
        if old[0].deficit <= 0 and self._new:
            return self._new[0]
        # After lines of megabytes no member may send for many rounds: they are skipped in one step.
        rounds = min(math.floor(-member.deficit / member.turn_work) for member in old)
        for member in old:
            member.deficit += max(0, rounds) * member.turn_work
        while old[0].deficit <= 0:
            old[0].deficit += old[0].turn_work
            old.rotate(-1)
        return old[0]

    def charge(self, member: M, work: float) -> None:
        """`member` has sent. A member that is alone owes nothing to others."""
        if len(self) == 1:
            self._old.extend(self._new)
            self._new.clear()
            return
        member.deficit -= work
        if member.deficit > 0:
            return
        if self._new and member is self._new[0]:
            self._new.popleft()
            member.deficit += member.turn_work
            self._old.append(member)
            self._is_first_turn_next = False
        else:
            self._is_first_turn_next = True
