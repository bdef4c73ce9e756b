"""`nightmill work`."""

from typing import Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import say


def work(
    upstream: flags.Upstream = None,
    upstream_key: flags.UpstreamKey = None,
    model: flags.Model = None,
    emulate: flags.Emulate = False,
    roles: Annotated[
        str,
        typer.Option(
            "--roles", metavar="ROLES", help="Which of worker, intake, finalizer and warden to hold here."
        ),
    ] = "worker,intake,finalizer,warden",
    folder: flags.Folder = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Worker processes on this machine [1].")
    ] = None,
    concurrency: flags.Concurrency = None,
    engine: flags.Engine = None,
    ray_address: flags.RayAddress = None,
    log_level: flags.LogLevel = None,
    config: flags.Config = None,
) -> None:
    """Hold roles without an API, beside as many others as are wanted.

    NIGHTMILL_STORE must name a Postgres, and the blobs must lie where every machine reaches them. Any of them
    may be killed: what it held goes on elsewhere. SIGTERM finishes what is in flight and leaves.
    """
    tree = flags.upstream_tree(
        upstream=upstream, upstream_key=upstream_key, model=model, emulate=emulate, concurrency=concurrency
    )
    tree |= {
        "folder": None if folder is None else str(folder),
        "engine": engine,
        "ray": {"address": ray_address},
        "log_level": log_level,
        "worker": {"processes": workers},
    }
    settings = flags.settings_of(tree, config)
    from nightmill.client.local import finished
    from nightmill.runtime.programs import prefork_roles
    from nightmill.runtime.work import work as worked

    named = [role.strip() for role in roles.split(",") if role.strip()]
    preforked = prefork_roles(settings, named)
    raise typer.Exit(finished(worked(settings, roles=named, say=say, preforked=preforked)))
