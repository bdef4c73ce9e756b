"""`nightmill keys`: make, list and revoke API keys, directly in the store of a data folder.

A secret is shown once, when the key is made. A running server accepts the key at once: it reads keys from the
store.
"""

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli import flags, stored
from nightmill.cli.help import CommandLine
from nightmill.cli.screen import Json, local_time, out, out_json, out_table, say
from nightmill.errors import NotFoundError, RequestError
from nightmill.ids import ProjectId

if TYPE_CHECKING:
    from nightmill.core.api_key import ApiKey

app = CommandLine("Make, list and revoke API keys.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, for the list.")],
    project: Annotated[
        str, typer.Option("--project", metavar="PROJECT", help="Files and batches are seen within it only.")
    ] = "default",
    admin: Annotated[
        bool, typer.Option("--admin", help="It may also ask about all projects and change upstreams.")
    ] = False,
    read: Annotated[
        bool, typer.Option("--read", help="It may look at its project and change nothing.")
    ] = False,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Make a key. Prints the secret, once; only its hash is kept."""
    from nightmill.client.local import finished
    from nightmill.core.api_key import Scope, make_api_key

    if admin and read:
        raise RequestError("--admin and --read exclude each other")
    settings = stored.settings_in(folder, config)
    stored.require_or_make_store(settings)
    secret, key = make_api_key(
        os.urandom,
        project_id=ProjectId(project),
        name=name,
        created_at=int(time.time()),
        scope=Scope.ADMIN if admin else Scope.READ if read else Scope.PROJECT,
    )

    async def add() -> None:
        async with stored.store_of(settings) as store:
            await store.api_keys.add(key, by=stored.operator())

    finished(add())
    if as_json:
        out_json({**_wire(key), "secret": secret})
    else:
        out(secret)
        say(f"{key.id} for project {key.project_id}; keep the secret, it can't be shown again")


@app.command("list")
def list_keys(folder: flags.Folder = None, config: flags.Config = None, as_json: Json = False) -> None:
    """List keys, revoked ones too."""
    keys = stored.with_store(folder, config, lambda store: store.api_keys.list())
    if as_json:
        out_json(*map(_wire, keys))
        return
    out_table(
        ("ID", "NAME", "PROJECT", "SCOPE", "ENDS IN", "CREATED", "REVOKED"),
        (
            (
                key.id,
                key.name,
                key.project_id,
                key.scope.value,
                key.hint,
                _day(key.created_at),
                _day(key.revoked_at),
            )
            for key in keys
        ),
        empty="no keys yet; make one with: nightmill keys create NAME",
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")],
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. Requests with it get 401 from now on."""
    if not stored.with_store(
        folder, config, lambda store: store.api_keys.revoke(key_id, by=stored.operator())
    ):
        raise NotFoundError(f"no key in use has the id {key_id}; see them with: nightmill keys list")
    if as_json:
        out_json({"id": key_id, "revoked": True})
    else:
        out(f"{key_id} is revoked")


def _day(stamp: int | None) -> str:
    return local_time(stamp)[:10]


def _wire(key: "ApiKey") -> dict[str, str | int | None]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project_id,
        "scope": key.scope.value,
        "hint": key.hint,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
