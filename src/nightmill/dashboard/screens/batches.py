"""The screen "Batches"."""

from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.visit import Visit, screen


async def show(visit: Visit) -> Screen:
    found = await visit.api.get("/nightmill/v1/batches", {"limit": 50})
    return Screen(
        template="batches.html", title="Batches", document={"batches": found["data"]}, live=("rows",)
    )


routes = (screen("/", show, area=BATCHES),)
