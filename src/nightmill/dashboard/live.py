"""Live updates: while a page is open, its blocks are rendered again and those that changed are sent.

Each message holds whole blocks, so a browser that lost the connection, or that paused while its tab was
hidden, needs nothing of what it missed. htmx morphs the blocks in place: focus and selection stay.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from typing import Final

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from nightmill.dashboard.calls import ApiRefusalError
from nightmill.errors import AuthenticationError, RequestError, UnavailableError

LONGEST_S: Final = 3_600.0
"""A stream ends after so long, and the browser opens another: a forgotten tab is asked who it is again."""
_STOP_POLL_S: Final = 0.25
_PING_S: Final = 15
_SEND_TIMEOUT_S: Final = 30.0


class OpenStreams:
    """How many pages are updated at once: each costs a connection, and is rendered every few seconds.

    Args:
        most: of this process.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    def check(self) -> None:
        """Raises UnavailableError when no further page can be updated."""
        if self._count >= self._most:
            raise UnavailableError(f"{self._most} pages are being updated already. Please try again later.")

    @contextmanager
    def one(self) -> Generator[None]:
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


def live_response(
    render: Callable[[], Awaitable[tuple[Mapping[str, str], float]]],
    *,
    is_stopping: Callable[[], bool],
    streams: OpenStreams,
) -> Response:
    """The stream of a page.

    Raises:
        UnavailableError: too many pages are open.

    Args:
        render: makes the HTML of each block, and says in how many seconds to look again.
        is_stopping: whether the server closes its connections.
    """
    streams.check()
    return EventSourceResponse(
        _counted(_changes(render, is_stopping=is_stopping), streams),
        ping=_PING_S,
        send_timeout=_SEND_TIMEOUT_S,
    )


async def _counted(
    events: AsyncGenerator[ServerSentEvent], streams: OpenStreams
) -> AsyncGenerator[ServerSentEvent]:
    with streams.one():
        async with aclosing(events) as changes:
            async for event in changes:
                yield event


async def _changes(
    render: Callable[[], Awaitable[tuple[Mapping[str, str], float]]], *, is_stopping: Callable[[], bool]
) -> AsyncGenerator[ServerSentEvent]:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + LONGEST_S
    sent: dict[str, str] = {}
    while loop.time() < ends_at and not is_stopping():
        every_s = 2.0
        try:
            blocks, every_s = await render()
        except AuthenticationError:
            return
        except (ApiRefusalError, RequestError, UnavailableError):
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
