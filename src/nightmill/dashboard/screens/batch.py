"""The screen "Batch"."""

from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(_: Visit) -> Screen:
    return Screen(template="batch.html", title="Batch")


routes = (screen("/ui/batches/{batch_id}", show, area=BATCHES),)
