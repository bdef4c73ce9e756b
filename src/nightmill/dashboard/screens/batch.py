"""The screen "Batch": how far one batch is and why, what failed, the newest answers, and its history."""

from typing import Any, Final

from starlette.responses import Response

from nightmill.core.words import short_id
from nightmill.dashboard.calls import path_of
from nightmill.dashboard.navigation import BATCHES
from nightmill.dashboard.pages import Screen
from nightmill.dashboard.screens.batch_reading import read_batch
from nightmill.dashboard.visit import Visit, action, screen
from nightmill.errors import RequestError

_RUNNING_EVERY_S: Final = 2.0
_ENDED_EVERY_S: Final = 20.0
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


async def retry_group(visit: Visit) -> Response:
    """A new batch of the failed lines with one code, or with any of several."""
    batch_id = visit.path("batch_id")
    codes = [code for code in (await visit.form()).all("code") if code]
    if not codes:
        raise RequestError("Choose a group of failed lines.", param="code")
    made: dict[str, Any] = await visit.api.post(
        path_of("nightmill", "v1", "batches", batch_id, "retry"), {"codes": codes}
    )
    if made["batch"] is None:
        return visit.redirect(f"ui{path_of('batches', batch_id)}", notice="No line was left to send again.")
    lines = f"{made['lines']:,} {'line' if made['lines'] == 1 else 'lines'}"
    return visit.redirect(
        f"ui{path_of('batches', made['batch']['id'])}", notice=f"A new batch repeats {lines}."
    )


routes = (
    screen("/ui/batches/{batch_id}", show, area=BATCHES),
    action("/ui/batches/{batch_id}/retry", retry_group, area=BATCHES),
)
