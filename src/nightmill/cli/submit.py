"""`submit`: uploads a file and creates its batch."""

from typing import Annotated

import typer

from nightmill.cli import batch_options as flag
from nightmill.cli import flags
from nightmill.cli.batches import watched
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.screen import Json, clean, out, out_json, say
from nightmill.errors import RequestError

PRIORITY_HELP = "From -10 to 10: with each step twice the share among the project's batches"


def submit(
    path: flags.Input,
    endpoint: flags.Endpoint = None,
    window: Annotated[
        str,
        typer.Option("--window", metavar="WINDOW", help="How long the batch may take.", show_default=True),
    ] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Kept with the batch; repeatable."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", metavar="N", min=-10, max=10, help=f"{PRIORITY_HELP} [0]."),
    ] = None,
    on_invalid: flag.OnInvalid = None,
    canary: flag.Canary = None,
    canary_max_failed: flag.CanaryMaxFailed = None,
    max_failures: flag.MaxFailures = None,
    max_output_tokens: flag.MaxOutputTokens = None,
    max_cost: flag.MaxCost = None,
    record_attempts: flag.RecordAttempts = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Wait for its end as `watch` does.")] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a file and create its batch. Prints the batch's id."""
    options = flag.batch_options(
        on_invalid=on_invalid,
        canary=canary,
        canary_max_failed=canary_max_failed,
        max_failures=max_failures,
        max_output_tokens=max_output_tokens,
        max_cost=max_cost,
        record_attempts=record_attempts,
    )
    pairs = pairs_of(metadata or [])
    with server(base_url) as client:
        from nightmill.client.answers import endpoint_of

        endpoint = endpoint or endpoint_of(path)
        batch = client.submit_file(
            path,
            endpoint=endpoint,
            completion_window=window,
            metadata=pairs,
            priority=priority,
            options=options,
        )
        if watch_it:
            say(f"{batch.id} is {batch.status}")
            watched(client, batch.id, as_json=as_json)
        if as_json:
            out_json(batch.to_dict(mode="json"))
        else:
            out(batch.id)
            say(f"see how it goes with: nightmill watch {batch.id}")


def pairs_of(given: list[str]) -> dict[str, str] | None:
    """The metadata of `KEY=VALUE`s; None without any."""
    pairs: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(f"--metadata wants KEY=VALUE and got '{clean(pair)}'")
        pairs[key] = value
    return pairs or None
