"""The screen "New batch"."""

from nightmill.dashboard.navigation import NEW_BATCH
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="new_batch.html", title="New batch")


routes = (screen("/ui/new", show, area=NEW_BATCH),)
