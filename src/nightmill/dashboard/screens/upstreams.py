"""The screen "Upstreams"."""

from nightmill.dashboard.navigation import UPSTREAMS
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="upstreams.html", title="Upstreams")


routes = (screen("/ui/upstreams", show, area=UPSTREAMS),)
