"""The observer role: looks at unfinished batches at short intervals, and acts on what it sees.

Each watch looks at one thing, such as what limits a batch or whether its budget is spent. Watches run one
after another, and each must be idempotent: on a fleet several observers look at the same batches.
"""

from collections.abc import Sequence
from typing import Final, Protocol

_INTERVAL_S: Final = 1.0


class Watch(Protocol):
    """One thing that the observer looks at."""

    async def look(self) -> None:
        """Looks once. Does a bounded amount of work, whatever the number of batches."""
        ...


class Observer:
    """The role that runs the watches."""

    name = "observer"

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    async def turn(self) -> float:
        for watch in self._watches:
            await watch.look()
        return _INTERVAL_S
