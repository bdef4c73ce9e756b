"""The screen "Line"."""

from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="line.html", title="Line")


routes = (screen("/ui/batches/{batch_id}/lines/{number}", show, area=BATCHES),)
