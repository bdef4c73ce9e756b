"""Wakes the dispatcher: at once when something has happened, or at a moment."""

import asyncio


class Waker:
    """A flag that one task waits for, and an alarm that sets it."""

    __slots__ = ("_alarm", "_alarm_at", "_is_woken", "_sleeper")

    def __init__(self) -> None:
        self._sleeper: asyncio.Future[None] | None = None
        self._is_woken = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    async def wait(self) -> None:
        """Waits for `wake`, or only lets the event loop run if it was called since the last wait."""
        if self._is_woken:
            await asyncio.sleep(0)
        else:
            self._sleeper = asyncio.get_running_loop().create_future()
            await self._sleeper
        self._is_woken, self._sleeper = False, None

    def wake(self) -> None:
        """Ends the wait of the task, or its next one."""
        sleeper = self._sleeper
        if sleeper is None:
            self._is_woken = True
        elif not sleeper.done():
            sleeper.set_result(None)

    def wake_at(self, moment: float, now: float) -> None:
        """Calls `wake` at a monotonic time, unless an earlier alarm is set."""
        if self._alarm is not None:
            if self._alarm_at <= moment:
                return
            self._alarm.cancel()
        self._alarm_at = moment
        self._alarm = asyncio.get_running_loop().call_later(moment - now, self._on_alarm)

    def cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _on_alarm(self) -> None:
        self._alarm = None
        self.wake()
