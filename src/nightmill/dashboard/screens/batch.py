"""The screen "Batch": how far one batch is and why, what failed, the newest answers, and its history."""

from typing import Final

from nightmill.core.words import short_id
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.screens.batch_reading import read_batch
from nightmill.dashboard.visit import Visit, screen

_RUNNING_EVERY_S: Final = 2.0
_ENDED_EVERY_S: Final = 5.0
_LIVE: Final = (
    "head",
    "steer",
    "figures",
    "graph",
    "plots",
    "failures",
    "latest",
    "spread",
    "history",
    "files",
    "receipt",
)


async def show(visit: Visit) -> Screen:
    batch_id = visit.path("batch_id")
    document = await read_batch(visit, batch_id)
    return Screen(
        template="batch.html",
        title=f"Batch {short_id(batch_id)}",
        document=document,
        live=_LIVE,
        every_s=_ENDED_EVERY_S if document["has_ended"] else _RUNNING_EVERY_S,
    )


routes = (screen("/ui/batches/{batch_id}", show, area=BATCHES),)
