"""`nightmill validate`: finds every bad line of a file, without a server."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out, out_json, out_table, say

if TYPE_CHECKING:
    from nightmill.settings import Settings
    from nightmill.validation import InputRules, ValidationResult

_CHUNK_BYTES = 1 << 20
_LINES_READ = 100


def validate(
    input_path: flags.Input,
    endpoint: flags.Endpoint = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Check every line of a file as a server would, and list all that are bad.

    The limits are OpenAI's unless settings say otherwise. Values inside a body that only the model server
    can check are not checked.
    """
    settings = flags.settings_of({}, config)
    endpoint = endpoint or _endpoint(input_path)
    result = _validated(input_path, settings, endpoint)
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


def _validated(path: Path, settings: "Settings", endpoint: str) -> "ValidationResult":
    # Imported here: the server's rules need the server's imports.
    from nightmill.core.batch import LineError
    from nightmill.roles.intake import input_rules
    from nightmill.validation import ValidationResult

    limit = settings.limits.input_file_bytes
    if path.stat().st_size > limit:
        message = f"The batch input file is larger than the {limit} maximum. Please split it."
        return ValidationResult(0, None, (LineError("file_too_large", message),))
    # A server lists only the first errors; to correct a file, all are needed.
    rules = input_rules(settings.limits, endpoint, models=settings.models)
    return _validation_result(path, replace(rules, listed_errors=sys.maxsize))


def _validation_result(path: Path, rules: "InputRules") -> "ValidationResult":
    from nightmill.validation import InputValidator

    validator = InputValidator(rules)
    with path.open("rb") as stream:
        while not validator.is_over and (chunk := stream.read(_CHUNK_BYTES)):
            validator.take(chunk)
        validator.finish()
        duplicate_pass = validator.duplicate_pass()
        if duplicate_pass is not None:
            stream.seek(0)
            while not duplicate_pass.is_over and (chunk := stream.read(_CHUNK_BYTES)):
                duplicate_pass.take(chunk)
            duplicate_pass.finish()
    return validator.result(duplicate_pass)


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
