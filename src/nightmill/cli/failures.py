"""Exit codes, and the messages of commands that fail.

An expected failure is one line that ends with the next step, never a traceback. An unexpected failure is a
defect and keeps its traceback.
"""

import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

import typer

from nightmill.cli.help import no_such_option
from nightmill.cli.interrupts import is_interrupt
from nightmill.cli.screen import clean, say
from nightmill.errors import NightmillError


class ExitCode(IntEnum):
    """The exit codes, stable for shell scripts; `MEANINGS` describes them."""

    OK = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    EXPIRED = 3
    CANCELLED = 4
    DAMAGED = 74
    TRY_AGAIN = 75
    SETUP = 78
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "all went well; every line was answered with a 2xx",
    ExitCode.SOME_FAILED: (
        "the batch is complete, but some of its lines failed; or `check` found only what `--repair` mends"
    ),
    ExitCode.BAD_INPUT: "the input, the request or the command line is wrong, or the batch failed validation",
    ExitCode.EXPIRED: "the batch expired; what was answered in time is kept",
    ExitCode.CANCELLED: "the batch was cancelled; what was answered before is kept",
    ExitCode.DAMAGED: "stored bytes do not read back; waiting won't help, a backup does",
    ExitCode.TRY_AGAIN: "the server or the upstream is away, or the batch has not ended; try again",
    ExitCode.SETUP: "nightmill is not set up as asked: no upstream, a wrong setting, a folder in use",
    ExitCode.INTERRUPTED: "stopped with Ctrl-C; the same command goes on",
}


def guarded(work: Callable[[], Any]) -> int:
    """Runs a command; an exception becomes a line on stderr and an exit code."""
    try:
        code = work()
    except KeyboardInterrupt:
        say("nightmill: stopped")
        return ExitCode.INTERRUPTED
    except Exception as error:
        known = described(_innermost(error))
        if known is None:
            if not is_interrupt(error):
                raise
            known = "stopped", ExitCode.INTERRUPTED
        message, exit_code = known
        say(f"nightmill: {message}")
        return exit_code
    if not isinstance(code, ExitCode) and code == ExitCode.INTERRUPTED:
        # The command line's library made this number of a KeyboardInterrupt. A command that says by itself
        # how to go on exits with the member of the enumeration.
        say("nightmill: stopped")
    return code if isinstance(code, int) else ExitCode.OK


def end_code(status: str, failed: int) -> ExitCode:
    """The exit code for a batch that has ended."""
    match status:
        case "completed":
            return ExitCode.SOME_FAILED if failed else ExitCode.OK
        case "expired":
            return ExitCode.EXPIRED
        case "cancelled":
            return ExitCode.CANCELLED
        case _:
            return ExitCode.BAD_INPUT


def _innermost(error: Exception) -> Exception:
    # A task group wraps the exceptions of its tasks; an expected failure among them is reported.
    if not isinstance(error, ExceptionGroup):
        return error
    group = cast("ExceptionGroup[Exception]", error)
    inner = [_innermost(one) for one in group.exceptions]
    expected = [one for one in inner if isinstance(one, NightmillError)]
    return expected[0] if len(expected) == len(inner) else group


def described(error: Exception) -> tuple[str, int] | None:
    """The message and the exit code of an expected failure; None for a defect."""
    # First, since the errors of a server are of nightmill's family too, whose words are for Python.
    if "openai" in sys.modules:
        known = _of_the_server(error)
        if known is not None:
            return known
    if isinstance(error, NightmillError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "nightmill"
        option = getattr(error, "option_name", None)
        message = _in_plain_words(clean(error.format_message())).rstrip(".")
        if context is not None and option is not None and message.startswith("No such option"):
            message = no_such_option(context, clean(option))
        see = f"{' See' if message.endswith('?') else '; see'} '{command} --help'"
        return message + see, ExitCode.BAD_INPUT
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or type(error).__name__}", ExitCode.BAD_INPUT
    return None


def _in_plain_words(message: str) -> str:
    if "Input should be" not in message and "Value error" not in message:
        return message
    # Imported here: pydantic is slow to import, and most messages are not its own.
    from nightmill.settings.problems import plain

    return plain(message)


def _of_the_server(error: Exception) -> tuple[str, int] | None:
    # Imported here: commands that talk to no server do not need the package.
    import openai

    from nightmill.cli import server_errors as said

    match error:
        case openai.APITimeoutError():
            place = said.place_of(error)
            return f"the server at {place} did not answer in time; try again", ExitCode.TRY_AGAIN
        case openai.APIConnectionError():
            return said.connection_error(error), ExitCode.TRY_AGAIN
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return said.refused_key(error), ExitCode.BAD_INPUT
        case openai.RateLimitError() | openai.InternalServerError():
            return said.passing_failure(error), ExitCode.TRY_AGAIN
        case openai.APIStatusError():
            return said.refusal(error), ExitCode.BAD_INPUT
        case openai.OpenAIError():
            return clean(str(error)), ExitCode.SETUP
        case _:
            return None
