"""The screen "System"."""

from nightmill.dashboard.navigation import SYSTEM
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="system.html", title="System")


routes = (screen("/ui/system", show, area=SYSTEM),)
