"""`nightmill keys`: make, list and revoke API keys, directly in the store of a data folder.

Promise: a secret is shown once, when it is made. A running server takes notice, since the store is its truth.
"""

import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli import flags
from nightmill.cli.screen import Json, local_time, out, out_json, out_table, say
from nightmill.errors import NotFoundError, SetupError
from nightmill.ids import ProjectId

if TYPE_CHECKING:
    from nightmill.settings import Settings
    from nightmill.store.protocol import ApiKey, Store

app = typer.Typer(rich_markup_mode=None, help="Make, list and revoke API keys.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for the list.")],
    project: Annotated[
        str, typer.Option("--project", metavar="PROJECT", help="Files and batches are seen within it only.")
    ] = "default",
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Make a key. Prints the secret, once; only its hash is kept."""
    from nightmill.client.local import finished
    from nightmill.keys import make_api_key

    settings = _settings(folder, config)
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret, key = make_api_key(
        os.urandom, project_id=ProjectId(project), name=name, created_at=int(time.time())
    )

    async def add() -> None:
        async with _store(settings) as store:
            await store.add_api_key(key)

    finished(add())
    if as_json:
        out_json({**_wire(key), "secret": secret})
    else:
        out(secret)
        say(f"{key.id} for project {key.project_id}; keep the secret, it can't be shown again")


@app.command("list")
def list_keys(folder: flags.Folder = None, config: flags.Config = None, as_json: Json = False) -> None:
    """List keys, revoked ones too."""
    from nightmill.client.local import finished

    settings = _settings(folder, config)
    _require_store(settings)

    async def read() -> "list[ApiKey]":
        async with _store(settings) as store:
            return list(await store.list_api_keys())

    keys = finished(read())
    if as_json:
        for key in keys:
            out_json(_wire(key))
        return
    out_table(
        ("ID", "NAME", "PROJECT", "ENDS IN", "CREATED", "REVOKED"),
        (
            (
                key.id,
                key.name,
                key.project_id,
                key.hint,
                local_time(key.created_at),
                local_time(key.revoked_at),
            )
            for key in keys
        ),
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")],
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. Requests with it get 401 from now on."""
    from nightmill.client.local import finished

    settings = _settings(folder, config)
    _require_store(settings)

    async def end() -> bool:
        async with _store(settings) as store:
            return await store.revoke_api_key(key_id)

    if not finished(end()):
        raise NotFoundError(f"no key in use has the id {key_id}; see them with: nightmill keys list")
    if as_json:
        out_json({"id": key_id, "revoked": True})
    else:
        out(f"{key_id} is revoked")


def _settings(folder: Path | None, config: Path | None) -> "Settings":
    return flags.settings_of({"folder": str(folder) if folder else None}, config)


def _require_store(settings: "Settings") -> None:
    if settings.store is None and not settings.folder.is_dir():
        message = f"there is no data folder at {settings.folder}; name the server's with --folder or --config"
        raise SetupError(message)


@asynccontextmanager
async def _store(settings: "Settings") -> "AsyncGenerator[Store]":
    from nightmill.assembly.start import open_stored, prepare

    await prepare(settings)
    store = open_stored(settings)
    try:
        yield store
    finally:
        await store.close()


def _wire(key: "ApiKey") -> dict[str, str | int | None]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project_id,
        "hint": key.hint,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
