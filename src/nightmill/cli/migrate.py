"""`nightmill migrate`."""

import contextlib
from typing import Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import out, out_json


def migrate(
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Bring the store's schema to this version of nightmill.

    Only a store in Postgres needs it, once per upgrade and before the new version starts; a store in the data
    folder is migrated by the server itself. Doing it twice, or on two machines at once, does no harm.
    """
    tree = {"folder": None if folder is None else str(folder)}
    settings = flags.settings_of(tree, config)
    from nightmill.assembly.folder_lock import locked_folder
    from nightmill.client.local import finished
    from nightmill.store.migrate import SCHEMA_VERSION
    from nightmill.store.migrate import migrate as migrated

    with locked_folder(settings.folder) if settings.is_embedded else contextlib.nullcontext():
        finished(migrated(settings.store_url))
    if as_json:
        out_json({"schema": SCHEMA_VERSION})
    else:
        out(f"the store's schema is {SCHEMA_VERSION}")
