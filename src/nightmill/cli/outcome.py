"""Words about an ended batch: its invalid lines, why lines failed, and what to type next."""

from typing import TYPE_CHECKING

from nightmill.cli.connection import base_url_flag
from nightmill.cli.screen import clean, say
from nightmill.core.words import counts_text, final_counts_text, short_id

if TYPE_CHECKING:
    from nightmill.client import Batch, Client

ENDED = ("completed", "expired", "cancelled", "failed")
_LISTED = 20


def tell_errors(batch: "Batch") -> None:
    """Prints the lines that failed validation, the first ones of many."""
    listed = (batch.errors.data if batch.errors else None) or []
    for error in listed[:_LISTED]:
        message = clean(error.message or error.code or "")
        say(f"line {error.line}: {message}" if error.line else message)
    if len(listed) > _LISTED:
        say(f"and {len(listed) - _LISTED} more; see them with: nightmill show {short_id(batch.id)} --json")


def counts_of(batch: "Batch") -> str:
    """`280 of 300 done (260 ok, 20 failed)`; empty before the lines are counted."""
    counts = batch.request_counts
    if counts is None or not counts.total:
        return ""
    words = final_counts_text if batch.status in ENDED else counts_text
    return words(counts.total, counts.completed, counts.failed)


def failures_of(client: "Client", batch: "Batch") -> str:
    """`20 failed: 20x 404 "The model nope does not exist."`; empty if no line failed."""
    from nightmill.client.failures import read_failures
    from nightmill.core.words import failures_text

    failed = batch.request_counts.failed if batch.request_counts else 0
    return failures_text(read_failures(client.openai, batch), failed) if failed else ""


def say_next(client: "Client", batch: "Batch", *, with_failures: bool) -> None:
    """Prints why the server stopped the batch, if it did, and what to type next, on stderr.

    Args:
        with_failures: also why lines failed.
    """
    failures = failures_of(client, batch) if with_failures else ""
    if failures:
        say(failures)
    own = client.insight.document_if_known(batch.id)
    if own is not None and own.get("stop_reason"):
        say(f"stopped: {clean(own['stop_reason']['message'])}")
    for step in next_steps(batch, base_url_flag(client), is_own=own is not None):
        say(step)


def next_steps(batch: "Batch", flag: str, *, is_own: bool) -> list[str]:
    """What can be done with a batch, each with its command.

    Args:
        flag: the flag that names the server, where the environment does not.
        is_own: whether the server is nightmill.
    """
    name, counts = short_id(batch.id), batch.request_counts
    if batch.status == "failed":
        return ["correct the lines, and submit the file again"]
    if batch.status not in ENDED:
        return [f"watch it with: nightmill watch {name}{flag}"]
    left = 0 if counts is None else counts.total - counts.completed - counts.failed
    steps: list[str] = []
    if batch.output_file_id:
        steps.append(f"get its lines with: nightmill results {name}{flag} -o FILE")
    if batch.error_file_id:
        which = "the others" if left else "the failed ones"
        steps.append(f"get {which} with: nightmill results {name}{flag} -e FILE")
    if counts is None or not is_own:
        return steps
    if left and batch.status in ("expired", "cancelled"):
        which = f"{' --failed' if counts.failed else ''} --{batch.status}"
        steps.append(f"send the others again with: nightmill retry {name}{flag}{which}")
    elif counts.failed:
        steps.append(f"send the failed ones again with: nightmill retry {name}{flag}")
    return steps
