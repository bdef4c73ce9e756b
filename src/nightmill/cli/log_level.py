"""`nightmill log-level`."""

from typing import Annotated, Any, cast

import typer

from nightmill.cli.batches import BaseUrl, server
from nightmill.cli.screen import Json, out, out_json


def log_level(
    level: Annotated[
        str | None, typer.Argument(metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show or change the lowest level that a running server logs. Needs an admin key.

    The change reaches all processes of the server's machine, until the server restarts. Processes of
    `nightmill work` change to debug with SIGUSR1, and back with SIGUSR2.
    """
    from nightmill.client.logs import LogApi

    with server(base_url) as client:
        api = LogApi(client.openai)
        found = api.level() if level is None else api.set_level(cast("Any", level))
    out_json({"level": found}) if as_json else out(found)
