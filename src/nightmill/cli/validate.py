"""`nightmill validate`: finds every bad line of a file, without a server."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out, out_json, say

if TYPE_CHECKING:
    from nightmill.cli.checked_input import CheckedInput
    from nightmill.settings import Settings

_DEFAULT_ENDPOINT = "/v1/chat/completions"


def validate(
    input_path: flags.Input,
    endpoint: flags.Endpoint = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a JSON object for each invalid line there."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show what a batch of the file would need: tokens, cost, time.")
    ] = False,
    upstream: Annotated[
        str | None,
        typer.Option(
            "--upstream", metavar="URL", help="With --estimate: the server whose tokenizer counts the tokens."
        ),
    ] = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Check every line of a file as a server would, and show each kind of error once.

    The limits are OpenAI's unless settings say otherwise. Values inside a body that only the model server
    can check are not checked. --report and --json have every invalid line.
    """
    from nightmill.cli.checked_input import error_text, first_endpoint, refuse_foreign
    from nightmill.cli.streams import readable

    settings = flags.settings_of({}, config)
    with readable(input_path) as path:
        endpoint = endpoint or first_endpoint(path) or _DEFAULT_ENDPOINT
        if estimate:
            refuse_foreign(path, input_path)
            _show_estimate(path, settings, endpoint, upstream, as_json=as_json)
        with nullcontext() if report is None else report.open("wb") as stream:
            found = _validated(path, settings, endpoint, stream, name=input_path, as_json=as_json)
    result = found.result
    if as_json:
        out_json(_wire(found, endpoint))
    elif result.errors:
        for text in error_text(found, sys.stdout):
            say(f"nightmill: {text}") if found.is_foreign else out(text)
        if not found.is_foreign:
            _conclude(found, input_path, endpoint, report)
    else:
        model = f" for {result.model}" if result.model else ""
        out(f"{_named(input_path)} is valid: {result.total:,} {_requests(result.total)} to {endpoint}{model}")
    raise typer.Exit(ExitCode.BAD_INPUT if result.errors else ExitCode.OK)


def _conclude(found: "CheckedInput", path: Path, endpoint: str, report: Path | None) -> None:
    counts = f": {found.counts}" if found.result.invalid else ""
    say(f"nightmill: {_named(path)} is not a valid input file for {endpoint}{counts}")
    if report is not None:
        say(f"every invalid line is in {report}")
    elif found.is_capped:
        say("write every invalid line to a file with --report FILE")


def _named(path: Path) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _requests(count: int) -> str:
    return "request" if count == 1 else "requests"


def _show_estimate(
    path: Path, settings: "Settings", endpoint: str, url: str | None, *, as_json: bool
) -> None:
    from nightmill.cli.estimate import estimate_of, show

    document, errors = estimate_of(path, settings, endpoint, url=url)
    show(document, errors, as_json=as_json)
    raise typer.Exit(ExitCode.OK if document["valid"] else ExitCode.BAD_INPUT)


def _validated(
    path: Path,
    settings: "Settings",
    endpoint: str,
    report: BinaryIO | None,
    *,
    name: Path,
    as_json: bool,
) -> "CheckedInput":
    # Imported here: the server's rules need the server's imports.
    from nightmill.cli.checked_input import CheckedInput, checked
    from nightmill.core.batch import LineError
    from nightmill.roles.intake import input_rules
    from nightmill.validation import ErrorGroups, ValidationResult, report_row

    limit = settings.limits.input_file_bytes
    if path.stat().st_size > limit:
        message = f"The batch input file is larger than the {limit} maximum. Please split it."
        error = LineError("file_too_large", message)
        if report is not None:
            report.write(report_row(error))
        return CheckedInput(ValidationResult(0, None, (error,), refusals=(error,)), ErrorGroups())
    rules = input_rules(settings.limits, endpoint, models=settings.models)
    if as_json:
        # A server lists only the first errors; to correct a file, all are needed.
        rules = replace(rules, listed_errors=sys.maxsize)
    return checked(path, rules, name=name, report=report)


def _wire(found: "CheckedInput", endpoint: str) -> dict[str, object]:
    result = found.result
    return {
        "valid": not result.errors,
        "endpoint": endpoint,
        "model": result.model,
        "requests": result.total,
        "errors": [
            {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
            for error in result.errors
        ],
    }
