"""`nightmill doctor`: checks the server and this machine, and says what to do about what is wrong."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from nightmill.cli import flags
from nightmill.cli.connection import BaseUrl, server
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out, out_json, say

if TYPE_CHECKING:
    from nightmill.cli.server_checks import Finding

_WIDTHS: Final = (7, 9)
_LEAST_WIDTH: Final = 40


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Send no request to the models.")] = False,
    folder: flags.Folder = None,
    config: flags.Config = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Check server, key, models, upstreams, clock and disk, and say what to do about what is wrong.

    Each upstream is tried with one short request to each of its models. On the machine of the server, or with
    --folder or --config, the settings, the data folder and its disk are checked too. The exit code is 78 if
    something failed, else 0.
    """
    found: list[Finding] = []
    for finding in _findings(quick=quick, folder=folder, config=config, base_url=base_url):
        found.append(finding)
        if not as_json:
            out(_line(finding, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if as_json:
        out_json(*({"level": str(it.level), "subject": it.subject, "text": it.text} for it in found))
    failed = sum(finding.level == "failed" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    if not as_json:
        numbers = ((failed, "failed"), (warnings, "to look at"))
        counts = [f"{number} {words}" for number, words in numbers if number]
        say(f"nightmill: {', '.join(counts) or 'all is well'}")
    if failed:
        raise typer.Exit(ExitCode.SETUP)


def _line(finding: "Finding", width: int | None) -> str:
    """The finding in columns; the text goes on below itself where the terminal is narrower."""
    beginning = f"{finding.level.ljust(_WIDTHS[0])}  {finding.subject.ljust(_WIDTHS[1])}  "
    if width is None:
        return beginning + finding.text
    return textwrap.fill(
        finding.text,
        max(width, _LEAST_WIDTH),
        initial_indent=beginning,
        subsequent_indent=" " * len(beginning),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _findings(
    *, quick: bool, folder: flags.Folder, config: flags.Config, base_url: str | None
) -> "Iterator[Finding]":
    # Imported here: the openai package takes most of a second to import.
    from nightmill.cli.local_checks import local_findings
    from nightmill.cli.server_checks import ServerChecks
    from nightmill.core.loopback import is_loopback

    with server(base_url) as client:
        checks = ServerChecks(
            client.openai, has_key=bool(os.environ.get("OPENAI_API_KEY")), asks_models=not quick
        )
        yield from checks.findings()
        is_local = is_loopback(client.openai.base_url.host)
    if is_local or folder is not None or config is not None:
        yield from local_findings(folder, config, is_served=is_local and checks.is_reached)
