"""Live updates without a browser: what is sent, when a stream ends, and how many there may be."""

from collections.abc import Mapping

import pytest
from sse_starlette.sse import EventSourceResponse

from nightmill.dashboard.calls import ApiRefusalError
from nightmill.dashboard.live import OpenStreams, live_response
from nightmill.errors import AuthenticationError, UnavailableError

GONE = ApiRefusalError("gone", status=503, code=None, param=None)


class Screen:
    """Gives what each look shows in turn, and then asks to stop."""

    def __init__(self, *looks: Mapping[str, str] | Exception) -> None:
        self._looks = list(looks)
        self.is_stopping = False

    async def render(self) -> tuple[Mapping[str, str], float]:
        look = self._looks.pop(0)
        self.is_stopping = not self._looks
        if isinstance(look, Exception):
            raise look
        return look, 0.0


def stream(screen: Screen, streams: OpenStreams) -> EventSourceResponse:
    response = live_response(screen.render, is_stopping=lambda: screen.is_stopping, streams=streams)
    assert isinstance(response, EventSourceResponse)
    return response


async def sent(screen: Screen, streams: OpenStreams | None = None) -> list[str]:
    response = stream(screen, streams or OpenStreams(1))
    return [str(event.data) async for event in response.body_iterator]


async def test_only_the_blocks_that_changed_are_sent():
    first, second = await sent(Screen({"a": "1", "b": "1"}, {"a": "1", "b": "1"}, {"a": "1", "b": "2"}))
    assert 'hx-target="#live-a"' in first
    assert 'hx-target="#live-b"' in first
    assert second == '<hx-partial hx-target="#live-b" hx-swap="innerMorph">2</hx-partial>'


async def test_what_is_shown_stays_while_the_api_refuses():
    assert len(await sent(Screen({"a": "1"}, GONE, {"a": "1"}))) == 1


async def test_a_stream_ends_when_the_key_is_revoked():
    screen = Screen({"a": "1"}, AuthenticationError("revoked"), {"a": "2"})
    assert len(await sent(screen)) == 1


async def test_a_page_over_the_limit_is_refused_until_another_is_closed():
    streams = OpenStreams(1)
    first = stream(Screen({"a": "1"}, {"a": "2"}), streams).body_iterator
    await anext(aiter(first))
    with pytest.raises(UnavailableError, match="1 pages are being updated already"):
        stream(Screen({"a": "1"}), streams)
    await first.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(await sent(Screen({"a": "1"}), streams)) == 1


@pytest.mark.parametrize("html", ["<b>1</b>", "zwei\nZeilen"])
async def test_html_is_sent_as_it_is(html: str):
    assert html in (await sent(Screen({"a": html})))[0]
