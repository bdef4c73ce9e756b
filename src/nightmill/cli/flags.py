"""Flags that several commands share, and the settings made from them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill.settings import Settings

_NAMED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)")
"""`NAME=URL`; the `=` in the query of a plain URL follows a `:`."""

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A TOML file of settings (docs/settings.md).")
]
Folder = Annotated[
    Path | None, typer.Option("--folder", metavar="FOLDER", help="The data folder [nightmill-data].")
]


def input_path(given: Path) -> Path:
    # Typer's own check of a path refuses '-'.
    if str(given) != "-":
        if not given.exists():
            raise typer.BadParameter(f"file '{given}' does not exist.")
        if given.is_dir():
            raise typer.BadParameter(f"'{given}' is a folder.")
    return given


Input = Annotated[
    Path,
    typer.Argument(metavar="IN.jsonl", callback=input_path, help="Request lines; '-' is stdin."),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="PATH", help="The endpoint of every line [that of the first line]."),
]
Upstream = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream",
        metavar="URL|NAME=URL|auto",
        help="The OpenAI-compatible server that answers, such as localhost:11434; again for another"
        " (docs/upstreams.md). 'auto' finds the usual local ones.",
    ),
]
UpstreamKey = Annotated[
    str | None,
    typer.Option(
        "--upstream-key",
        metavar="KEY",
        help="Its API key. Others can see flags: better NIGHTMILL_UPSTREAM__API_KEY or ..._API_KEY_FILE.",
    ),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", metavar="FILE.gguf", help="Answer with a model file (extra nightmill[llama])."),
]
Emulate = Annotated[
    bool, typer.Option("--emulate", help="Answer with made-up text that says so, for trying out.")
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        "--concurrency", metavar="N|auto", help="Lines in flight to each upstream; auto finds it [auto]."
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Worker processes on this machine [1].")
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="local|ray", help="Run workers here, or as actors of a Ray cluster (docs/ray.md)."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="The cluster: ray://host:10001, host:6379 or auto; without, one is started on this machine.",
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
]


def upstream_tree(
    *,
    upstream: Sequence[str] | None,
    upstream_key: str | None,
    model: Path | None,
    emulate: bool,
    concurrency: str | None,
) -> dict[str, Any]:
    """The flags that name upstreams, as a nested mapping of settings. None leaves a setting unchanged.

    Raises:
        SetupError: two upstreams have the same name.
    """
    url, several = _upstreams(upstream or ())
    return {
        "upstream": {"url": url, "api_key": upstream_key, "concurrency": concurrency},
        "upstreams": {name: {"url": of} for name, of in several.items()},
        "model": {"path": model},
        "emulator": {"enabled": True if emulate else None},
    }


def _upstreams(given: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The URL of a lone upstream without a name, or else the URLs of all by name."""
    named = [(found[1], found[2]) if (found := _NAMED.fullmatch(text)) else (None, text) for text in given]
    match named:
        case []:
            return None, {}
        case [(None, url)]:
            return url, {}
        case _:
            urls: dict[str, str] = {}
            for given_name, url in named:
                name = given_name or _name_of(url)
                if name in urls:
                    raise SetupError(f"two upstreams are named {name!r}; use --upstream NAME=URL for each")
                urls[name] = url
            return None, urls


def _name_of(url: str) -> str:
    """`http://gpu-a:8000/v1` -> `gpu-a-8000`."""
    from nightmill.core.upstream_url import base_url

    try:
        parts = urlsplit(base_url(url))
    except ValueError as error:
        raise SetupError(
            f"each --upstream needs a URL such as http://host:8000/v1, or NAME=URL: {error}"
        ) from None
    place = f"{parts.hostname or ''}-{parts.port or ''}"
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", place).strip("-._")
    if not name:
        raise SetupError("each --upstream needs a URL such as http://host:8000/v1, or NAME=URL")
    return name


def settings_of(flags: dict[str, Any], config: Path | None) -> "Settings":
    # Imported here: pydantic is slow to import and `--help` does not need it.
    from nightmill.settings import load

    return load(flags=flags, config=config)
