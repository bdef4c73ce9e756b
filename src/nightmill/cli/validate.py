"""`nightmill validate`: finds every bad line of a file, without a server."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out, out_json, out_table, say

if TYPE_CHECKING:
    from nightmill.settings import Settings
    from nightmill.validation import (
        DuplicatePass,
        InputRules,
        InputValidator,
        ValidationReport,
        ValidationResult,
    )

_CHUNK_BYTES = 1 << 20
_LINES_READ = 100


def validate(
    input_path: flags.Input,
    endpoint: flags.Endpoint = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a JSON object for each invalid line there."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell what a batch of the file would need: tokens, cost, time.")
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
    """Check every line of a file as a server would, and list all that are bad.

    The limits are OpenAI's unless settings say otherwise. Values inside a body that only the model server
    can check are not checked.
    """
    settings = flags.settings_of({}, config)
    endpoint = endpoint or _endpoint(input_path)
    if estimate:
        _show_estimate(input_path, settings, endpoint, upstream, as_json=as_json)
    with nullcontext() if report is None else report.open("wb") as stream:
        result = _validated(input_path, settings, endpoint, stream)
    if as_json:
        out_json(_wire(result, endpoint))
    elif result.errors:
        headings = ("LINE", "CODE", "MESSAGE")
        out_table(headings, ((str(error.line or ""), error.code, error.message) for error in result.errors))
        say(f"nightmill: {input_path} is not a valid input file for {endpoint}: {len(result.errors)} errors")
    else:
        model = f" for {result.model}" if result.model else ""
        out(f"{input_path} is valid: {result.total} requests to {endpoint}{model}")
    raise typer.Exit(ExitCode.BAD_INPUT if result.errors else ExitCode.OK)


def _show_estimate(
    path: Path, settings: "Settings", endpoint: str, url: str | None, *, as_json: bool
) -> None:
    from nightmill.cli.estimate import estimate_of, show

    document = estimate_of(path, settings, endpoint, url=url)
    show(document, as_json=as_json)
    raise typer.Exit(ExitCode.OK if document["valid"] else ExitCode.BAD_INPUT)


def _validated(
    path: Path, settings: "Settings", endpoint: str, report: BinaryIO | None
) -> "ValidationResult":
    # Imported here: the server's rules need the server's imports.
    from nightmill.core.batch import LineError
    from nightmill.roles.intake import input_rules
    from nightmill.validation import ValidationResult, report_row

    limit = settings.limits.input_file_bytes
    if path.stat().st_size > limit:
        message = f"The batch input file is larger than the {limit} maximum. Please split it."
        error = LineError("file_too_large", message)
        if report is not None:
            report.write(report_row(error))
        return ValidationResult(0, None, (error,), refusals=(error,))
    # A server lists only the first errors; to correct a file, all are needed.
    rules = input_rules(settings.limits, endpoint, models=settings.models)
    return _validation_result(path, replace(rules, listed_errors=sys.maxsize), report)


def _validation_result(path: Path, rules: "InputRules", report: BinaryIO | None) -> "ValidationResult":
    from nightmill.validation import InputValidator, ValidationReport, report_row

    rows = None if report is None else ValidationReport()
    validator = InputValidator(rules, rows)
    with path.open("rb") as stream:
        _run(validator, stream, rows, report)
        duplicate_pass = validator.duplicate_pass()
        if duplicate_pass is not None:
            stream.seek(0)
            if report is not None:
                report.truncate(report.seek(0))
            _run(duplicate_pass, stream, rows, report)
    result = validator.result(duplicate_pass)
    if report is not None:
        report.write(b"".join(map(report_row, result.refusals)))
    return result


def _run(
    validator: "InputValidator | DuplicatePass",
    stream: BinaryIO,
    rows: "ValidationReport | None",
    report: BinaryIO | None,
) -> None:
    """Gives the whole file to `validator`, and the rows of its report to `report`."""
    while not validator.is_over and (chunk := stream.read(_CHUNK_BYTES)):
        validator.take(chunk)
        if rows is not None and report is not None:
            report.write(rows.take())
    validator.finish()
    if rows is not None and report is not None:
        report.write(rows.take())


def _endpoint(path: Path) -> str:
    """The endpoint of the first line that names a known one; bad lines before it are skipped."""
    from nightmill.core.batch import ENDPOINTS
    from nightmill.core.request_line import endpoint_in

    with path.open("rb") as stream:
        for _ in range(_LINES_READ):
            url = endpoint_in(stream.readline(_CHUNK_BYTES))
            if url in ENDPOINTS:
                return url
    return "/v1/chat/completions"


def _wire(result: "ValidationResult", endpoint: str) -> dict[str, object]:
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
