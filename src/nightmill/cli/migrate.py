"""`nightmill migrate`."""

import contextlib
from typing import Annotated

import typer

from nightmill.cli import flags, stored
from nightmill.cli.screen import Json, out, out_json
from nightmill.errors import RequestError


def migrate(
    before: Annotated[
        bool, typer.Option("--before", help="What may run while the old version is at work.")
    ] = False,
    after: Annotated[
        bool, typer.Option("--after", help="What may run once every process is of this version.")
    ] = False,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Bring the store's schema to this version of nightmill.

    Only a store in Postgres needs it, once per upgrade; the server migrates a store in the data folder
    itself. A running fleet is upgraded in three steps: `migrate --before` with the new version, replace the
    processes one after another, `migrate --after`. Without either flag, both are done: for a fleet that is
    stopped. A step that would break an older nightmill is refused while connections of an older one are open;
    connections behind a pooler, or with another `application_name`, cannot be seen. Running it twice, or on
    two machines at once, does no harm.
    """
    if before and after:
        raise RequestError("--before and --after exclude each other; without either, both run")
    settings = flags.settings_of({"folder": folder}, config)
    from nightmill.client.local import finished
    from nightmill.runtime.data_folder_lock import locked_folder
    from nightmill.store.migrate import migrate as migrated
    from nightmill.store.steps import Stage

    stored.require_or_make_store(settings)
    stage = Stage.BEFORE if before else Stage.AFTER if after else None
    with locked_folder(settings.folder) if settings.is_embedded else contextlib.nullcontext():
        version = finished(migrated(settings.store_url, stage=stage, by=stored.operator()))
    if as_json:
        out_json({"schema": version})
    else:
        out(f"the store's schema is {version}")
