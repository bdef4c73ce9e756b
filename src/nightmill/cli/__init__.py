"""The `nightmill` command.

Parses arguments, prints results, and sets exit codes. `--help` is fast because each command imports what it
needs. Decisions about batches belong to the server.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import nightmill
from nightmill.cli import (
    backup,
    batches,
    check,
    convert,
    doctor,
    files,
    holds,
    input_files,
    insight,
    keys,
    migrate,
    move,
    projects,
    prune,
    reports,
    results,
    retries,
    run,
    screen,
    serve,
    settings,
    steering,
    submit,
    torture,
    upstreams,
    validate,
    watch,
    webhooks,
    work,
)
from nightmill.cli.failures import ExitCode, guarded
from nightmill.cli.help import CommandLine

app = CommandLine("The OpenAI Batch API on your own models.")


def _print_version(wanted: bool) -> None:
    if wanted:
        screen.out(f"nightmill {nightmill.__version__}")
        raise typer.Exit(ExitCode.OK)


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Holds the options of the program itself."""


def version(as_json: screen.Json = False) -> None:
    """Print the version."""
    if as_json:
        screen.out_json({"version": nightmill.__version__})
    else:
        screen.out(nightmill.__version__)


app.add("Start", serve.serve, run.run)
app.add("Use batches", submit.submit, list=batches.list_batches)
app.add("Use batches", batches.show, watch.watch, results.results, retries.retry, steering.cancel)
app.add("Use batches", validate.validate, convert.convert)
app.add_typer(files.app, name="files", rich_help_panel="Use batches")
app.add("Look closer", insight.events, retries.line, retries.attempts, retries.receipt)
app.add("Look closer", input_files.validation, input_files.canary)
app.add("Steer", steering.pause, steering.resume, steering.prioritize, steering.deadline, steering.limit)
app.add("Operate", doctor.doctor, settings.settings, check.check, backup.backup, prune.prune)
app.add_typer(upstreams.app, name="upstreams", rich_help_panel="Operate")
app.add_typer(keys.app, name="keys", rich_help_panel="Operate")
app.add_typer(projects.app, name="projects", rich_help_panel="Operate")
app.add_typer(webhooks.app, name="webhooks", rich_help_panel="Operate")
app.add_typer(holds.app, name="hold", rich_help_panel="Operate")
app.add("Operate", reports.usage, reports.audit, serve.log_level, version)
app.add("Fleet", work.work, migrate.migrate, move.move, torture.torture)


def main() -> None:
    """Runs the command line of this process; `nightmill.__main__` is the entry point."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. `help COMMAND` is `COMMAND --help`."""
    words = [*arguments[1:], "--help"] if arguments[:1] == ["help"] else list(arguments)
    return guarded(lambda: app(args=words, prog_name="nightmill", standalone_mode=False))
