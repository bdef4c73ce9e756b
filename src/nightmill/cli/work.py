"""`nightmill work`."""

from typing import Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.interrupts import stop_while_loading
from nightmill.cli.screen import say
from nightmill.roles.registry import ROLE_NAMES, resolve_roles

_ALL_BUT_LAST = ", ".join(ROLE_NAMES[:-1])
_LAST = ROLE_NAMES[-1]


@stop_while_loading()
def work(
    upstream: flags.Upstream = None,
    upstream_key: flags.UpstreamKey = None,
    model: flags.Model = None,
    emulate: flags.Emulate = False,
    roles: Annotated[
        str,
        typer.Option("--roles", metavar="ROLES", help=f"Which of {_ALL_BUT_LAST} and {_LAST} to run here."),
    ] = ",".join(ROLE_NAMES),
    folder: flags.Folder = None,
    workers: flags.Workers = None,
    concurrency: flags.Concurrency = None,
    engine: flags.Engine = None,
    ray_address: flags.RayAddress = None,
    log_level: flags.LogLevel = None,
    config: flags.Config = None,
) -> None:
    """Run roles without an API, on as many machines as needed.

    NIGHTMILL_STORE must name a Postgres, and every machine must reach the blobs. Any of these processes may
    be killed: others take over its work. SIGTERM finishes the requests in flight and exits.
    """
    tree = flags.upstream_tree(
        upstream=upstream, upstream_key=upstream_key, model=model, emulate=emulate, concurrency=concurrency
    )
    tree |= {
        "folder": folder,
        "engine": engine,
        "ray": {"address": ray_address},
        "log_level": log_level,
        "worker": {"processes": workers},
    }
    settings = flags.settings_of(tree, config)
    from nightmill.client.local import finished
    from nightmill.runtime.programs import prefork_roles
    from nightmill.runtime.work import work as worked

    named = resolve_roles([role.strip() for role in roles.split(",") if role.strip()])
    preforked = prefork_roles(settings, named)
    raise typer.Exit(finished(worked(settings, roles=named, say=say, preforked=preforked)))
