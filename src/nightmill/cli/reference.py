"""The command line's reference page, printed from the commands themselves.

`python -m nightmill.cli.reference > docs/cli.md` prints it again; a test fails when the page is not current.
"""

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

import typer

from nightmill.cli import app
from nightmill.cli.failures import MEANINGS

INTRODUCTION = """\
# Command line

Printed from the commands by `make docs`; do not edit by hand.

Results go to stdout, everything else to stderr; `--json` prints JSON for machines, one document, or one a
line for lists. `nightmill --install-completion` installs completion for your shell.

`serve`, `run`, `validate`, `backup`, `check`, `keys`, `projects`, `hold`, `usage` and `audit` work on this
machine and take their [settings](settings.md) from flags, then the environment (`NIGHTMILL_...`), then a
file. `submit`, `list`, `show`, `watch`, `results`, `cancel` and `files` are a client of any OpenAI-compatible
batch server: `OPENAI_BASE_URL` names it (by default `http://127.0.0.1:8080/v1`) and `OPENAI_API_KEY` is sent
to it.
"""


def page() -> str:
    root: Any = typer.main.get_command(app)
    return "\n".join([INTRODUCTION, *_exit_codes(), *_commands(root, "nightmill")]) + "\n"


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning |\n|---|---|"
    for code, meaning in MEANINGS.items():
        yield f"| {int(code)} | {meaning} |"
    yield ""


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        parameters = [one for one in command.params if not one.hidden and one.name != "help"]
        arguments = [one for one in parameters if one.param_type_name == "argument"]
        options = [one for one in parameters if one.param_type_name == "option"]
        below: bool = hasattr(command, "commands")
        words = [full, *(one.metavar for one in arguments)]
        if below:
            words.append("[COMMAND]")
        yield f"## `{' '.join(words)}`\n"
        yield cleandoc(command.help or "") + "\n"
        if arguments or options:
            yield "| | |\n|---|---|"
            for one in arguments:
                yield f"| `{one.metavar}` | {_cell(one.help)} |"
            for one in options:
                yield f"| {_names(one)} | {_cell(one.help)}{_default(one)} |"
            yield ""
        if below:
            yield from _commands(command, full)


def _names(option: Any) -> str:
    metavar = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    return ", ".join(f"`{name}{metavar}`" for name in option.opts).replace("|", r"\|")


def _default(option: Any) -> str:
    # The help texts give the defaults of settings in brackets: here they are all None.
    if option.is_flag or option.default is None:
        return ""
    return f" [{option.default}]"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - this module prints
