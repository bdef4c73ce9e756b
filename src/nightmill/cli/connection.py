"""The connection of a command to its server, and the arguments that name the server and a batch."""

import os
from collections.abc import Generator
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
    from nightmill.client.api import DEFAULT_BASE_URL

    given = str(client.openai.base_url).rstrip("/")
    expected = os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    return "" if given == expected.rstrip("/") else f" --base-url {given}"


def full_batch_id(client: "Client", given: str) -> str:
    """The id of the batch that `given` names: an id, the unique beginning of one, or `latest`.

    Raises:
        RequestError: no batch, or several, begin with it.
    """
    beginning = given if given.startswith(_PREFIX) else f"{_PREFIX}{given}"
    if given != LATEST and len(beginning) >= _FULL_LENGTH:
        return given
    after, found = None, set[str]()
    while True:
        page = client.api.list_batches(after=after, limit=_PAGE)
        if given == LATEST and page.data:
            return page.data[0].id
        found.update(batch.id for batch in page.data if batch.id.startswith(beginning))
        if not page.has_more or not page.data:
            break
        after = page.data[-1].id
    if len(found) == 1:
        return found.pop()
    if not found:
        raise RequestError(f"no batch begins with '{clean(given)}'; list them with: nightmill list")
    raise RequestError(f"{len(found)} batches begin with '{clean(given)}'; give more of the id")
