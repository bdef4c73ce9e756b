"""The connection of a command to its server, and the arguments that name the server and a batch."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from nightmill.cli.screen import clean
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client import Client

LATEST = "latest"
_PREFIX = "batch_"
_FULL_LENGTH = len(_PREFIX) + 32
_PAGE = 100
_NAMED = 3

BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", metavar="URL", help="The server [OPENAI_BASE_URL, else http://127.0.0.1:8080/v1]."
    ),
]
BatchId = Annotated[
    str, typer.Argument(metavar="ID", help="The batch's id, the beginning of it, or 'latest'.")
]


@contextmanager
def server(base_url: str | None) -> "Generator[Client]":
    # Imported here: the openai package takes most of a second to import.
    from nightmill.client import Client

    with Client(base_url) as client:
        yield client


def base_url_flag(client: "Client") -> str:
    """The flag that a further command needs to reach the same server; empty if the environment names it."""
    from nightmill.client.api import DEFAULT_BASE_URL, with_scheme

    given = str(client.openai.base_url).rstrip("/")
    expected = with_scheme(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    return "" if given == expected.rstrip("/") else f" --base-url {given}"


def full_batch_ids(client: "Client", given: Sequence[str]) -> list[str]:
    """`full_batch_id` of each."""
    return [full_batch_id(client, it) for it in given]


def full_batch_id(client: "Client", given: str) -> str:
    """The id of the batch that `given` names: an id, the unique beginning of one, or `latest`.

    Raises:
        RequestError: no batch, or several, begin with it.
    """
    if given == LATEST:
        newest = client.api.list_batches(limit=1).data
        if not newest:
            raise RequestError("there is no batch yet; make one with: nightmill submit FILE")
        return newest[0].id
    beginning = given if given.startswith(_PREFIX) else f"{_PREFIX}{given}"
    if len(beginning) >= _FULL_LENGTH:
        return given
    found = _beginning_with(client, beginning)
    if len(found) == 1 or beginning in found:
        return beginning if beginning in found else found[0]
    if not found:
        raise RequestError(f"no batch begins with '{clean(given)}'; list them with: nightmill list")
    named = ", ".join(map(clean, found[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
    raise RequestError(f"several batches begin with '{clean(given)}': {named}; give more of the id")


def _beginning_with(client: "Client", beginning: str) -> list[str]:
    """The ids that begin so. Other servers than nightmill have to list all of their batches."""
    from openai import APIStatusError

    try:
        # A server of an older version returns its newest batches whatever they begin with.
        return [it for it in client.api.steering.ids(beginning) if it.startswith(beginning)]
    except APIStatusError:
        pass
    after, found = None, list[str]()
    while True:
        page = client.api.list_batches(after=after, limit=_PAGE)
        found += [batch.id for batch in page.data if batch.id.startswith(beginning)]
        if not page.has_more or not page.data:
            return found
        after = page.data[-1].id
