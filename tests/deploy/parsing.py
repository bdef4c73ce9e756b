"""Parses the command lines and environments of a deployment as nightmill and compose do."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from nightmill import settings
from nightmill.cli import app
from nightmill.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def understood(words: Sequence[str]) -> dict[str, Any]:
    """The parameters of a command line. An unknown command, flag or value raises."""
    command, names = typer.main.get_command(app), list(words)
    context = command.make_context("nightmill", names[:1], resilient_parsing=True)
    while hasattr(command, "commands"):
        name = names.pop(0)
        command = command.commands[name]
        context = command.make_context(
            name, list(names), parent=context, resilient_parsing=hasattr(command, "commands")
        )
    return context.params


def loaded(
    environment: Mapping[str, str], *, content: Callable[[str], str] = lambda _: "from-a-file"
) -> Settings:
    """The settings from an environment; files named by `..._FILE` variables contain `content(path)`."""
    with tempfile.TemporaryDirectory() as folder:
        variables: dict[str, str] = {}
        for number, (name, value) in enumerate(environment.items()):
            if not name.startswith(settings.PREFIX):
                continue
            if name.endswith(("_FILE", "NIGHTMILL_CONFIG")):
                path = Path(folder, str(number))
                path.write_text(content(value))
                variables[name] = str(path)
            else:
                variables[name] = value
        return settings.load(environment=variables)


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Replaces `${NAME:-default}` and `${NAME:?message}` as compose does."""

    def value(found: "re.Match[str]") -> str:
        name, kind, rest = found["name"], found["kind"], found["rest"]
        if name in variables:
            return variables[name]
        assert kind == ":-", f"{name} has no value and no default: {rest}"
        return rest

    return re.sub(r"\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<rest>[^}]*)\}", value, text)
