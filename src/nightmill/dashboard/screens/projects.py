"""The screen "Keys and projects"."""

from nightmill.dashboard.navigation import KEYS
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="projects.html", title="Keys and projects")


routes = (screen("/ui/projects", show, area=KEYS),)
