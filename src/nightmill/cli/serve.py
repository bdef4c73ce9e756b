"""`nightmill serve`, and the log level of a running server."""

from typing import Annotated, Any, cast

import typer

from nightmill.cli import flags
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.interrupts import stop_while_loading
from nightmill.cli.screen import Json, out, out_json, say


@stop_while_loading()
def serve(
    upstream: flags.Upstream = None,
    upstream_key: flags.UpstreamKey = None,
    model: flags.Model = None,
    emulate: flags.Emulate = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on [127.0.0.1]; others need API keys."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", help="Port to listen on [8080]; 0 takes a free one."),
    ] = None,
    folder: flags.Folder = None,
    workers: flags.Workers = None,
    concurrency: flags.Concurrency = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            "--window",
            metavar="WINDOW",
            help="An accepted completion window such as 24h or 7d [24h]; again for another.",
        ),
    ] = None,
    engine: flags.Engine = None,
    ray_address: flags.RayAddress = None,
    log_level: flags.LogLevel = None,
    config: flags.Config = None,
) -> None:
    """Start the server: OpenAI's Batch API under /v1.

    Lines are answered by --upstream, --model or --emulate; there is no default. SIGTERM and Ctrl-C finish the
    attempts in flight and stop; unfinished batches continue at the next start.
    """
    tree = flags.upstream_tree(
        upstream=upstream, upstream_key=upstream_key, model=model, emulate=emulate, concurrency=concurrency
    )
    tree |= {
        "folder": folder,
        "engine": engine,
        "ray": {"address": ray_address},
        "log_level": log_level,
        "api": {"host": host, "port": port},
        "worker": {"processes": workers},
        "limits": {"completion_windows": window or None},
    }
    # Imported here: pydantic is slow to import and `--help` does not need it.
    from nightmill.settings.loading import settings_from, sources_of

    sources = sources_of(flags=tree, config=config)
    settings = settings_from(sources)
    from nightmill.client.local import finished
    from nightmill.runtime.programs import prefork_roles
    from nightmill.runtime.serve import serve as served
    from nightmill.settings.origins import effective_settings

    serving = served(
        settings,
        say=say,
        preforked=prefork_roles(settings),
        in_effect=lambda settings: effective_settings(settings, sources),
    )
    raise typer.Exit(finished(serving))


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
