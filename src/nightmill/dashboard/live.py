"""Live updates: while a page is open, its blocks are rendered again and those that changed are sent.

Each message holds whole blocks, so a browser that lost the connection, or that paused while its tab was
hidden, needs nothing of what it missed. htmx morphs the blocks in place: focus and selection stay.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, TypeAlias

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from nightmill.dashboard.calls import ApiRefusalError
from nightmill.errors import AuthenticationError, UnavailableError

LONGEST_S: Final = 3_600.0
"""A stream ends after so long, and the browser opens another: a forgotten tab is asked who it is again."""
_STOP_POLL_S: Final = 0.25
_PING_S: Final = 15
_SEND_TIMEOUT_S: Final = 30.0


Render: TypeAlias = Callable[[], Awaitable[tuple[Mapping[str, str], float]]]


class Streams:
    """The streams that this process sends, up to a limit: each looks again every few seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    def response(self, render: Render, *, is_stopping: Callable[[], bool]) -> Response:
        """The stream of a page. Over the limit it ends at once, and the browser tries again later.

        Args:
            render: makes the HTML of each block, and says in how many seconds to look again.
            is_stopping: whether the server closes its connections.
        """
        return EventSourceResponse(
            self._counted(render, is_stopping), ping=_PING_S, send_timeout=_SEND_TIMEOUT_S
        )

    async def _counted(
        self, render: Render, is_stopping: Callable[[], bool]
    ) -> AsyncGenerator[ServerSentEvent]:
        if self._count >= self._most:
            return
        self._count += 1
        try:
            async with aclosing(_changes(render, is_stopping)) as changes:
                async for change in changes:
                    yield change
        finally:
            self._count -= 1


async def _changes(render: Render, is_stopping: Callable[[], bool]) -> AsyncGenerator[ServerSentEvent]:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + LONGEST_S
    sent: dict[str, str] = {}
    while loop.time() < ends_at and not is_stopping():
        every_s = 2.0
        try:
            blocks, every_s = await render()
        except AuthenticationError:
            return
        except (ApiRefusalError, UnavailableError):
            blocks: Mapping[str, str] = {}  # what is shown stays; the next look may succeed
        changed = {name: html for name, html in blocks.items() if sent.get(name) != html}
        if changed:
            sent.update(changed)
            yield ServerSentEvent("".join(_partial(name, html) for name, html in changed.items()))
        again_at = loop.time() + every_s
        while (left_s := again_at - loop.time()) > 0 and not is_stopping():  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(min(left_s, _STOP_POLL_S))


def _partial(name: str, html: str) -> str:
    return f'<hx-partial hx-target="#live-{name}" hx-swap="innerMorph">{html}</hx-partial>'
