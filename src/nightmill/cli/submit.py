"""`submit`: checks a file, uploads it and creates its batch."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nightmill.cli import batch_options as flag
from nightmill.cli import flags
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.screen import Json, clean, out, out_json, say
from nightmill.cli.streams import readable
from nightmill.cli.watch import watched
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client import Batch, Client

_UNLIMITED: Final = 1 << 40
_DEEPEST: Final = 10_000
PRIORITY_HELP = "From -10 to 10: with each step twice the share among the project's batches"


def submit(
    input_path: flags.Input,
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
    canary_pause: flag.CanaryPause = False,
    max_failures: flag.MaxFailures = None,
    max_output_tokens: flag.MaxOutputTokens = None,
    max_cost: flag.MaxCost = None,
    record_attempts: flag.RecordAttempts = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Upload without a check of the lines; the server checks them.")
    ] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Wait for its end as `watch` does.")] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Check a file, upload it and create its batch. Prints the batch's id.

    Every line, the endpoint and the window are checked before anything is uploaded.
    """
    options = flag.batch_options(
        on_invalid=on_invalid,
        canary=canary,
        canary_max_failed=canary_max_failed,
        canary_pause=canary_pause,
        max_failures=max_failures,
        max_output_tokens=max_output_tokens,
        max_cost=max_cost,
        record_attempts=record_attempts,
    )
    pairs = pairs_of(metadata or [])
    with readable(input_path) as path, server(base_url) as client:
        batch = _submitted(
            client,
            path,
            CheckedSubmission(
                name=input_path,
                endpoint=endpoint,
                window=window,
                on_invalid=on_invalid or flag.OnInvalidChoice.FAIL,
                is_checked=not no_check,
            ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSubmission:
    """What is checked before an upload."""

    name: Path
    endpoint: str | None
    window: str
    on_invalid: flag.OnInvalidChoice
    is_checked: bool


def _submitted(client: "Client", path: Path, submission: CheckedSubmission, **batch: Any) -> "Batch":
    import openai

    endpoint = _checked_endpoint(client, path, submission)
    try:
        return client.submit_file(path, endpoint=endpoint, completion_window=submission.window, **batch)
    except openai.APIError as error:
        for note in getattr(error, "__notes__", ()):
            say(note)
        raise


def _checked_endpoint(client: "Client", path: Path, submission: CheckedSubmission) -> str:
    """The endpoint of the batch, once nothing is known that the server would refuse."""
    from nightmill.client.answers import endpoint_of
    from nightmill.client.upload_guard import accepted_values

    if not submission.is_checked:
        return submission.endpoint or endpoint_of(path)
    from nightmill.cli.checked_input import first_endpoint, refuse_foreign

    refuse_foreign(path, submission.name)
    # Of an invalid first line nothing is known: the check of the lines reports it.
    endpoint = submission.endpoint or first_endpoint(path) or endpoint_of(path)
    accepted_values(client.openai).refuse_others(endpoint=endpoint, window=submission.window)
    _check_lines(path, endpoint, submission)
    return endpoint


def _check_lines(path: Path, endpoint: str, submission: CheckedSubmission) -> None:
    from nightmill.cli.checked_input import checked, error_text
    from nightmill.validation import InputRules

    # The limits are the server's, which only the server knows.
    rules = InputRules(
        endpoint=endpoint,
        models_per_file=_UNLIMITED,
        lines_per_file=_UNLIMITED,
        line_bytes=_UNLIMITED,
        nesting=_DEEPEST,
        embedding_inputs=_UNLIMITED,
    )
    found = checked(path, rules, name=submission.name)
    if not found.result.errors:
        return
    if submission.on_invalid == flag.OnInvalidChoice.SKIP and found.result.total:
        say(f"{found.counts} and will be in the error file")
        return
    for text in error_text(found, sys.stderr):
        say(text)
    others = "send the others with --on-invalid skip, " if found.result.total else ""
    raise RequestError(
        f"nothing was uploaded: {found.counts}; correct them, {others}or let the server judge with --no-check"
    )


def pairs_of(given: list[str]) -> dict[str, str] | None:
    """The metadata of `KEY=VALUE`s; None without any."""
    pairs: dict[str, str] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RequestError(f"--metadata wants KEY=VALUE and got '{clean(pair)}'")
        pairs[key] = value
    return pairs or None
