"""Words about an ended batch: its invalid lines, why lines failed, and what to type next."""

from typing import TYPE_CHECKING

from nightmill.cli.connection import base_url_flag
from nightmill.cli.screen import clean, say
from nightmill.client.words import short_id

if TYPE_CHECKING:
    from nightmill.client import Batch, Client

ENDED = ("completed", "expired", "cancelled", "failed")
_LISTED = 20
_RETRY_FLAGS = {"expired": " --failed --expired", "cancelled": " --failed --cancelled"}


def tell_errors(batch: "Batch") -> None:
    """Prints the lines that failed validation, the first ones of many."""
    listed = (batch.errors.data if batch.errors else None) or []
    for error in listed[:_LISTED]:
        message = clean(error.message or error.code or "")
        say(f"line {error.line}: {message}" if error.line else message)
    if len(listed) > _LISTED:
        say(f"and {len(listed) - _LISTED} more; see them with: nightmill show {short_id(batch.id)} --json")


def failures_of(client: "Client", batch: "Batch") -> str:
    """`20 failed: 20x 404 "The model nope does not exist."`; empty if no line failed."""
    from nightmill.client.failures import read_failures
    from nightmill.client.words import failures_text

    failed = batch.request_counts.failed if batch.request_counts else 0
    return failures_text(read_failures(client.openai, batch), failed) if failed else ""


def say_next(client: "Client", batch: "Batch", *, with_failures: bool) -> None:
    """Prints what to type next, on stderr.

    Args:
        with_failures: also why lines failed.
    """
    failures = failures_of(client, batch) if with_failures else ""
    if failures:
        say(failures)
    for step in next_steps(batch, base_url_flag(client), is_own=is_nightmill(client, batch)):
        say(step)


def is_nightmill(client: "Client", batch: "Batch") -> bool:
    return client.insight.document_if_known(batch.id) is not None


def next_steps(batch: "Batch", flag: str, *, is_own: bool) -> list[str]:
    """What can be done with a batch, each with its command.

    Args:
        flag: the flag that names the server, where the environment does not.
        is_own: whether the server is nightmill.
    """
    name, failed = short_id(batch.id), batch.request_counts.failed if batch.request_counts else 0
    if batch.status == "failed":
        return ["correct the lines, and submit the file again"]
    if batch.status not in ENDED:
        return [f"watch it with: nightmill watch {name}{flag}"]
    steps: list[str] = []
    if batch.output_file_id:
        steps.append(f"get its lines with: nightmill results {name}{flag} -o FILE")
    if batch.error_file_id:
        steps.append(f"get the failed ones with: nightmill results {name}{flag} -e FILE")
    if failed and is_own:
        again = _RETRY_FLAGS.get(batch.status, "")
        steps.append(f"send the failed ones again with: nightmill retry {name}{flag}{again}")
    return steps
