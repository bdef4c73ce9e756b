"""The screen "Files"."""

from nightmill.dashboard.navigation import FILES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="files.html", title="Files")


routes = (screen("/ui/files", show, area=FILES),)
