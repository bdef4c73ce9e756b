"""The screen "Try"."""

from nightmill.dashboard.navigation import TRY
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="try_request.html", title="Try")


routes = (screen("/ui/try", show, area=TRY),)
