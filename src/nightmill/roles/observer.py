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
        """Lets every watch look, also when an earlier one fails.

        Raises:
            ExceptionGroup: the errors of the watches that failed.
        """
        errors: list[Exception] = []
        for watch in self._watches:
            try:
                await watch.look()
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup("watches of the observer failed", errors)
        return _INTERVAL_S
