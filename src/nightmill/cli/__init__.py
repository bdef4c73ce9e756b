"""The `nightmill` command.

Parses arguments, prints results, and sets exit codes. `--help` is fast because each command imports what it
needs. Decisions about batches belong to the server.
"""

import sys
from collections.abc import Sequence

import typer

import nightmill
from nightmill.cli import (
    backup,
    batches,
    check,
    convert,
    files,
    holds,
    input_files,
    insight,
    keys,
    migrate,
    move,
    projects,
    reports,
    results,
    retries,
    run,
    screen,
    serve,
    steering,
    submit,
    torture,
    upstreams,
    validate,
    watch,
    webhooks,
    work,
)
from nightmill.cli.failures import guarded

# Plain help and errors: rich is slow to import, and its boxes are not one line.
app = typer.Typer(
    name="nightmill",
    help="The OpenAI Batch API on your own models.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def version(as_json: screen.Json = False) -> None:
    """Print the version."""
    if as_json:
        screen.out_json({"version": nightmill.__version__})
    else:
        screen.out(nightmill.__version__)


app.command()(serve.serve)
app.command()(work.work)
app.command()(run.run)
app.command()(validate.validate)
app.command()(convert.convert)
app.command()(backup.backup)
app.command()(check.check)
app.command()(submit.submit)
app.command("list")(batches.list_batches)
app.command()(batches.show)
app.command()(watch.watch)
app.command()(insight.events)
app.command()(results.results)
app.command()(retries.retry)
app.command()(retries.receipt)
app.command()(retries.line)
app.command()(steering.pause)
app.command()(steering.resume)
app.command()(steering.prioritize)
app.command()(steering.deadline)
app.command()(steering.limit)
app.command()(steering.cancel)
app.command()(input_files.canary)
app.command()(input_files.validation)
app.command()(retries.attempts)
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.add_typer(upstreams.app, name="upstreams")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(holds.app, name="hold")
app.command("log-level")(serve.log_level)
app.command()(reports.usage)
app.command()(reports.audit)
app.command()(migrate.migrate)
app.command()(move.move)
app.command()(torture.torture)
app.command()(version)


def main() -> None:
    """Runs the command line of this process; `nightmill.__main__` is the entry point."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    words = list(arguments) or ["--help"]
    return guarded(lambda: app(args=words, prog_name="nightmill", standalone_mode=False))
