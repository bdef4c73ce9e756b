"""Flags that several commands share, and the settings made from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nightmill.settings import Settings

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A TOML file of settings (docs/settings.md).")
]
Folder = Annotated[
    Path | None, typer.Option("--folder", metavar="FOLDER", help="The data folder [nightmill-data].")
]
Input = Annotated[
    Path,
    typer.Argument(metavar="IN.jsonl", exists=True, dir_okay=False, readable=True, help="Request lines."),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="PATH", help="The endpoint of every line [that of the first line]."),
]
Upstream = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        metavar="URL|auto",
        help="The OpenAI-compatible server that answers, up to /v1; 'auto' finds the usual local ones.",
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
    int | None,
    typer.Option("--concurrency", metavar="N", help="Lines in flight to the upstream at once [64]."),
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
    upstream: str | None,
    upstream_key: str | None,
    model: Path | None,
    emulate: bool,
    concurrency: int | None,
) -> dict[str, Any]:
    """The flags that name an upstream, as a nested mapping of settings. None leaves a setting unchanged."""
    return {
        "upstream": {"url": upstream, "api_key": upstream_key, "concurrency": concurrency},
        "model": {"path": model},
        "emulator": {"enabled": True if emulate else None},
    }


def settings_of(flags: dict[str, Any], config: Path | None) -> "Settings":
    # Imported here: pydantic is slow to import and `--help` does not need it.
    from nightmill.settings import load

    return load(flags=flags, config=config)
