"""`nightmill webhooks`: the URLs to which a running server sends events, and what was delivered to them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli.assignments import secret_from
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.failures import ExitCode
from nightmill.cli.help import CommandLine
from nightmill.cli.screen import Json, clean, local_time, out, out_fields, out_json, out_table, say
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client.webhooks import WebhookApi

app = CommandLine(
    "Show and change where the server sends word of batches that have ended (docs/webhooks.md).",
    invoke_without_command=True,
)

EndpointId = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id, whe_...")]
DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, wh_...")]
Events = Annotated[
    list[str] | None,
    typer.Option(
        "--event", metavar="TYPE", help="An event such as batch.completed; repeatable [all that are sent]."
    ),
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100, help="How many, newest first.")]
After = Annotated[str | None, typer.Option("--after", metavar="ID", help="Those behind this one.")]
_URL_HELP = "Where events are sent, or @FILE to read a URL with a token from a file."


@app.callback()
def _of_all(context: typer.Context) -> None:  # pyright: ignore[reportUnusedFunction] - registered
    if context.invoked_subcommand is None:
        list_endpoints()


@app.command("list")
def list_endpoints(
    limit: Limit = 20, after: After = None, base_url: BaseUrl = None, as_json: Json = False
) -> None:
    """List endpoints."""
    with _webhooks(base_url) as webhooks:
        page = webhooks.list(after=after, limit=limit)
    if as_json:
        out_json(*page["data"])
        return
    rows = [(one["id"], one["name"], _place(one["url"]), _events(one)) for one in page["data"]]
    empty = "no endpoints yet; add one with: nightmill webhooks add NAME URL"
    out_table(("ID", "NAME", "SERVER", "EVENTS"), rows, empty=empty)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for people.")],
    url: Annotated[str, typer.Argument(metavar="URL", help=_URL_HELP)],
    events: Events = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Add an endpoint, and print its signing secret, which is never shown again."""
    with _webhooks(base_url) as webhooks:
        _print_secret(webhooks.add(name, _given_url(url), events or webhooks.event_types()), as_json=as_json)


@app.command()
def show(endpoint_id: EndpointId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show one endpoint."""
    with _webhooks(base_url) as webhooks:
        _print(webhooks.show(endpoint_id), as_json=as_json)


@app.command()
def update(
    endpoint_id: EndpointId,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="A new name.")] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help=_URL_HELP)] = None,
    events: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="In place of the events until now; repeatable."),
    ] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Change an endpoint. What is not named stays unchanged."""
    if name is None and url is None and not events:
        raise RequestError("name what to change: --name, --url or --event")
    new_url = None if url is None else _given_url(url)
    with _webhooks(base_url) as webhooks:
        changed = webhooks.update(endpoint_id, name=name, url=new_url, event_types=events or None)
        _print(changed, as_json=as_json)


@app.command()
def remove(endpoint_id: EndpointId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Remove an endpoint. What was still to be delivered to it is dropped."""
    with _webhooks(base_url) as webhooks:
        removed = webhooks.remove(endpoint_id)
    out_json(removed) if as_json else out(f"{endpoint_id} is removed")


@app.command()
def rotate(
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old secret too, for 24 hours.")
    ] = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Replace the signing secret, and print the new one."""
    with _webhooks(base_url) as webhooks:
        _print_secret(webhooks.rotate(endpoint_id, keep_old=keep_old), as_json=as_json)


@app.command()
def test(
    endpoint_id: EndpointId,
    event: Annotated[
        str, typer.Option("--event", metavar="TYPE", help="The event to send.", show_default=True)
    ] = "batch.completed",
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Send a sample to an endpoint at once, and print what it answers."""
    with _webhooks(base_url) as webhooks:
        result = webhooks.test(endpoint_id, event)
    status = int(result["status_code"])
    is_success = 200 <= status < 300
    if as_json:
        out_json(result)
    else:
        out(f"{endpoint_id} answers {status}" + ("" if is_success else ": a delivery would be sent again"))
    raise typer.Exit(ExitCode.OK if is_success else ExitCode.SETUP)


@app.command()
def deliveries(
    endpoint_id: EndpointId,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="pending, delivered or failed.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List what was and is to be delivered to an endpoint."""
    with _webhooks(base_url) as webhooks:
        page = webhooks.deliveries(endpoint_id, state=state, after=after, limit=limit)
    if as_json:
        out_json(*page["data"])
        return
    headings = ("ID", "EVENT", "BATCH", "STATE", "ATTEMPTS", "LAST ANSWER", "NEXT ATTEMPT")
    out_table(headings, (_row(one) for one in page["data"]), empty="there are no deliveries")
    if page["has_more"]:
        say(f"older ones: --after {page['last_id']}")


@app.command()
def resend(delivery_id: DeliveryId, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Send a delivery again, whatever became of it."""
    with _webhooks(base_url) as webhooks:
        delivery = webhooks.resend(delivery_id)
    out_json(delivery) if as_json else out(f"{delivery_id} is sent again")


def _print(endpoint: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        out_json(endpoint)
        return
    out_fields(
        [
            ("id", endpoint["id"]),
            ("name", endpoint["name"]),
            ("url", endpoint["url"]),
            ("events", _events(endpoint)),
            ("created", local_time(endpoint["created_at"])),
            ("updated", local_time(endpoint.get("updated_at"))),
            ("secret", endpoint.get("signing_secret_hint")),
        ]
    )


def _print_secret(endpoint: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        out_json(endpoint)
        return
    out_fields([("id", endpoint["id"]), ("signing secret", endpoint["signing_secret"])])
    say("keep the secret: it is not shown again")


def _row(delivery: dict[str, Any]) -> tuple[str, ...]:
    attempts: list[dict[str, Any]] = delivery["attempts"]
    answer = (attempts[-1]["error"] or str(attempts[-1]["status_code"])) if attempts else ""
    return (
        delivery["id"],
        delivery["event_type"],
        delivery["batch_id"] or "",
        delivery["state"],
        str(len(attempts)),
        answer,
        local_time(delivery["next_attempt_at"]),
    )


def _place(url: str) -> str:
    return clean("/".join(url.split("/")[:3]))


def _events(endpoint: dict[str, Any]) -> str:
    return ", ".join(endpoint["event_types"])


def _given_url(url: str) -> str:
    return secret_from(url[1:]) if url.startswith("@") else url


@contextmanager
def _webhooks(base_url: str | None) -> "Generator[WebhookApi]":
    with server(base_url) as client:
        yield client.webhooks
