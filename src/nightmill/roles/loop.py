"""The loop that runs a role: turn, wait, pause after an error, drain; and the notifier that shortens waits.

An error in one turn does not end a role. A notification is only a hint: a lost one costs one wait, never
work.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

from nightmill.errors import UnavailableError
from nightmill.telemetry import Emit, RoleFailed

_ERROR_PAUSE_S = 1.0


class Role(Protocol):
    name: str

    async def turn(self) -> float:
        """Does the work that is ready; returns seconds until the next turn, 0 when more may be ready now."""
        ...


@runtime_checkable
class Draining(Protocol):
    """A role whose turns leave work in flight."""

    async def drain(self, *, grace_s: float) -> None:
        """Waits for the work in flight, for `grace_s` at most; what is left then is dropped."""
        ...


class Notifier:
    """Wakes the roles of this process, and through `notify_others` those of other processes."""

    def __init__(self, notify_others: Callable[[], None] | None = None) -> None:
        self._notify_others = notify_others
        self._event = asyncio.Event()
        self.count = 0

    def notify(self) -> None:
        """There may be work for a role of any process."""
        self.notify_local()
        if self._notify_others is not None:
            self._notify_others()

    def notify_local(self) -> None:
        """There may be work for a role of this process."""
        self.count += 1
        self._event.set()

    async def wait(self, *, since: int, timeout_s: float) -> None:
        """Returns once `count` differs from `since`, or after `timeout_s`."""
        if self.count != since:
            return
        self._event.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return


async def keep_turning(
    role: Role,
    *,
    notifier: Notifier,
    stop: asyncio.Event,
    emit: Emit,
    random: Callable[[], float],
    longest_pause_s: float = math.inf,
) -> None:
    """Runs `role` until `stop` is set (call `notifier.notify_local` after setting it).

    Args:
        random: numbers in [0, 1); waits vary by a tenth either way, so that processes do not act in step.
        longest_pause_s: after an error; a holder of leases must try again before they lapse.
    """
    while not stop.is_set():
        count_before = notifier.count
        try:
            pause_s = await role.turn()
        except Exception as error:  # noqa: BLE001 - no error of one turn ends a role; the event reports it
            error = plain(error)
            emit(RoleFailed(role.name, error))
            pause_s, count_before = min(_pause_after(error), longest_pause_s), notifier.count
        if pause_s > 0 and not stop.is_set():
            await notifier.wait(since=count_before, timeout_s=pause_s * (0.9 + 0.2 * random()))


def plain(error: Exception) -> Exception:
    """The error itself, or the first of a group whose errors are all `UnavailableError`."""
    leaves = _leaves(error)
    first = leaves[0]
    if isinstance(first, UnavailableError) and all(isinstance(leaf, UnavailableError) for leaf in leaves):
        return first
    return error


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inside = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return [leaf for inner in inside for leaf in _leaves(inner)]


def _pause_after(error: Exception) -> float:
    match error:
        case UnavailableError():
            return float(error.retry_after_s)
        case ExceptionGroup(exceptions=(Exception() as first, *_)):
            return _pause_after(first)
        case _:
            return _ERROR_PAUSE_S
