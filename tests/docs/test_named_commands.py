"""Commands of nightmill that the pages name within a sentence or a table exist, with their options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from nightmill.cli import app

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"CHANGELOG.md", "cli.md"}
"""The commands of earlier versions, and a page that is printed from the commands."""
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "docs/deploy/*.md", "docs/howto/*.md")
    for page in ROOT.glob(pattern)
    if page.name not in LEFT_OUT
)
NAMED = re.compile(r"`nightmill ([a-z][^`]*)`")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def named(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(words.replace(r"\|", "|").split()) for words in NAMED.findall(text)]


def fault_of(words: list[str]) -> str | None:
    """The command or option that nightmill does not have."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        name, *words = words
        if name not in command.commands:
            return f"command {name}"
        command = command.commands[name]
    known = {"--help", *(name for parameter in command.params for name in parameter.opts)}
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_that_a_page_names_exist(page: Path):
    faults = {command: fault for command in named(page) if (fault := fault_of(shlex.split(command)))}
    assert not faults


@pytest.mark.parametrize("wrong", ["serves", "serve --emulated", "keys make"])
def test_a_wrong_command_is_found(wrong: str):
    assert fault_of(wrong.split()) is not None
