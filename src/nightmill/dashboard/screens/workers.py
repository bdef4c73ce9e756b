"""The screen "Workers"."""

from nightmill.dashboard.navigation import WORKERS
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="workers.html", title="Workers")


routes = (screen("/ui/workers", show, area=WORKERS),)
