"""What limits a batch, when it will end, and `events`: its history. Only nightmill servers have them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nightmill.cli.connection import BaseUrl, BatchId, full_batch_id, server
from nightmill.cli.screen import Json, local_time, out_json, out_table

if TYPE_CHECKING:
    from nightmill.client.insight import BatchEvent

_APART = frozenset({"sentence", "code"})


def events(
    batch_id: BatchId,
    after: Annotated[
        int, typer.Option("--after", metavar="N", min=0, help="Only entries after the one with this number.")
    ] = 0,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show the history of a batch of a nightmill server: what happened, when, and who did it."""
    with server(base_url) as client:
        found = client.api.insight.events(full_batch_id(client, batch_id), after=after)
        if as_json:
            for event in found:
                out_json(asdict(event))
            return
        out_table(("N", "WHEN", "WHAT", "WHO", "DETAIL"), map(_row, found))


def _row(event: "BatchEvent") -> tuple[str, ...]:
    who = event.actor or "nightmill"
    return str(event.sequence), local_time(int(event.at)), event.kind.replace("_", " "), who, _detail(event)


def _detail(event: "BatchEvent") -> str:
    return str(event.detail.get("sentence") or ", ".join(_pairs(event)))


def _pairs(event: "BatchEvent") -> Iterator[str]:
    for name, value in event.detail.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else {name: value}
        for inner_name, inner_value in inner.items():
            if inner_name not in _APART and inner_value is not None:
                yield f"{inner_name}={_text(inner_value)}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
