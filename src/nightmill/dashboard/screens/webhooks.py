"""The screen "Webhooks"."""

from nightmill.dashboard.navigation import WEBHOOKS
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="webhooks.html", title="Webhooks")


routes = (screen("/ui/webhooks", show, area=WEBHOOKS),)
