"""`nightmill upstreams`: list, add, change, pause, drain, remove and try upstreams of a running server."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli import upstream_screen
from nightmill.cli.assignments import assigned, secret_from
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.failures import ExitCode
from nightmill.cli.help import CommandLine
from nightmill.cli.screen import Json, out, out_json
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.client.upstreams import UpstreamApi

app = CommandLine(
    "Show and change the upstreams of a running server, without a restart. Needs an admin key.",
    invoke_without_command=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The upstream's name.")]
Fields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FIELD=VALUE",
        help="Settings of docs/settings.md such as weight=0, models=a,b, aliases.small=qwen3-8b or"
        " headers.X-Team=@FILE; @FILE reads a value from a file, and no value takes the default.",
    ),
]
KeyFile = Annotated[
    str | None, typer.Option("--key-file", metavar="FILE", help="A file with the API key; '-' is stdin.")
]


@app.callback()
def _of_all(context: typer.Context) -> None:  # pyright: ignore[reportUnusedFunction] - registered
    if context.invoked_subcommand is None:
        list_upstreams()


@app.command("list")
def list_upstreams(base_url: BaseUrl = None, as_json: Json = False) -> None:
    """List upstreams with their models, attempts in flight, limits and the reason of each limit."""
    with _upstreams(base_url) as upstreams:
        listed = upstreams.list()
    if as_json:
        out_json(*listed["data"])
    else:
        upstream_screen.print_list(listed["data"], listed["problems"])


@app.command()
def show(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show one upstream. Keys and header values are never shown."""
    with _upstreams(base_url) as upstreams:
        upstream = upstreams.get(name)
    if as_json:
        out_json(upstream)
    else:
        upstream_screen.print_one(upstream)


@app.command()
def add(
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="Its base URL, up to and with /v1.")],
    fields: Fields = None,
    key_file: KeyFile = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Add an upstream. Workers send to it within seconds; it stays after a restart."""
    document = {"name": name, "url": url, **_document(fields, key_file)}
    with _upstreams(base_url) as upstreams:
        _print(upstreams.add(document), "is added", as_json=as_json)


@app.command("set")
def set_fields(
    name: Name,
    fields: Fields = None,
    key_file: KeyFile = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Change settings of an upstream. Those that are not named stay unchanged."""
    document = _document(fields, key_file)
    if not document:
        raise RequestError("name what to change, such as weight=0 or --key-file FILE")
    with _upstreams(base_url) as upstreams:
        _print(upstreams.change(name, document), "is changed", as_json=as_json)


@app.command()
def pause(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Start no more attempts. Lines that only this upstream can answer wait."""
    _act(name, "pause", "is paused", base_url=base_url, as_json=as_json)


@app.command()
def resume(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Send lines again after a pause or a drain."""
    _act(name, "resume", "is active", base_url=base_url, as_json=as_json)


@app.command()
def drain(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Finish the attempts in flight, and let other upstreams with its models take its lines."""
    done = "drains; see its attempts in flight with: nightmill upstreams"
    _act(name, "drain", done, base_url=base_url, as_json=as_json)


@app.command()
def remove(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Remove an upstream. One of the settings file is hidden until `reset`."""
    with _upstreams(base_url) as upstreams:
        removed = upstreams.remove(name)
    out_json(removed) if as_json else out(f"{name} is removed")


@app.command()
def reset(name: Name, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Forget every change at run time, so that the settings file holds again."""
    with _upstreams(base_url) as upstreams:
        done = upstreams.do(name, "reset")
    if as_json:
        out_json(done)
    else:
        out(f"{name} is removed" if done.get("deleted") else f"{name} is as in the settings file")


@app.command()
def test(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The upstream's name.")] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Try this URL from here, without a server.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="With --url: a model to ask; repeatable."),
    ] = None,
    key_file: KeyFile = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Try an upstream, and say what is wrong and what to do. Sends one short request to each model."""
    if (name is None) == (url is None):
        raise RequestError("name an upstream of the server, or give --url URL")
    if name is not None:
        if model or key_file is not None:
            raise RequestError("--model and --key-file go with --url; the server has those of its upstreams")
        with _upstreams(base_url) as upstreams:
            found = upstreams.do(name, "test")
    else:
        found = _tried_here(url or "", models=model or (), key_file=key_file)
    if as_json:
        out_json(found)
    else:
        upstream_screen.print_trial(found)
    raise typer.Exit(ExitCode.OK if found["is_usable"] else ExitCode.SETUP)


def _tried_here(url: str, *, models: Sequence[str], key_file: str | None) -> dict[str, Any]:
    key = None if key_file is None else secret_from(key_file)
    # Imported here: these take most of a second to import.
    from pydantic import SecretStr

    from nightmill.api.upstream_wire import diagnosis_on_wire, shown_url
    from nightmill.client.local import finished
    from nightmill.settings import UpstreamSettings
    from nightmill.upstream.diagnosis import diagnose

    settings = UpstreamSettings(api_key=None if key is None else SecretStr(key))
    diagnosis = finished(diagnose(settings, url=url, models=models))
    return diagnosis_on_wire(shown_url(url) or "the upstream", diagnosis)


def _act(name: str, action: str, done: str, *, base_url: str | None, as_json: bool) -> None:
    with _upstreams(base_url) as upstreams:
        _print(upstreams.do(name, action), done, as_json=as_json)


def _print(upstream: dict[str, Any], done: str, *, as_json: bool) -> None:
    out_json(upstream) if as_json else out(f"{upstream['name']} {done}")


def _document(fields: Sequence[str] | None, key_file: str | None) -> dict[str, Any]:
    document = assigned(fields or [])
    if key_file is not None:
        document["api_key"] = secret_from(key_file)
    return document


@contextmanager
def _upstreams(base_url: str | None) -> "Generator[UpstreamApi]":
    with server(base_url) as client:
        from nightmill.client.upstreams import UpstreamApi

        yield UpstreamApi(client.openai)
