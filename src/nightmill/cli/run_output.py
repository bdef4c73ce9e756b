"""The files of `nightmill run`, with stdin and stdout among them, and the words about its end."""

import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nightmill.cli.screen import clean, out, out_json, say
from nightmill.cli.streams import STDIN, STDOUT, copy_out
from nightmill.core.words import counts_text, failures_text
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.core.batch import Usage
    from nightmill.runtime.run_file import RunSummary
    from nightmill.runtime.run_files import RunFiles

_LISTED: Final = 20
_READ_FAILURES: Final = 1_000


def is_printed(input_path: Path, output: Path | None) -> bool:
    """Whether the output goes to stdout at the end."""
    return output == STDOUT or (output is None and input_path == STDIN)


@contextmanager
def run_files(input_path: Path, output: Path | None, errors: Path | None) -> "Generator[RunFiles]":
    """The files of the run. An output that is printed is in the default file too, so that a finished run is
    known as such; that of stdin is in a temporary folder, which stays while it has lines that were paid for.
    """
    from nightmill.cli.checked_input import refuse_foreign
    from nightmill.client.local import default_paths
    from nightmill.runtime.run_files import RunFiles

    named = None if output == STDOUT else output
    if input_path != STDIN:
        refuse_foreign(input_path, input_path)
        default_output, default_errors = default_paths(input_path)
        yield RunFiles(input_path, named or default_output, errors or default_errors)
        return
    folder = Path(tempfile.mkdtemp(prefix="nightmill-"))
    copy = folder / "stdin.jsonl"
    default_output, _ = default_paths(copy)
    _, default_errors = default_paths(Path(copy.name))
    files = RunFiles(copy, named or default_output, errors or default_errors)
    try:
        with copy.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        refuse_foreign(copy, input_path)
        yield files
    finally:
        if files.work_folder.exists():
            say(f"the lines of stdin and what is done of them stay in {copy}; name this file to go on")
        elif not default_output.exists():
            shutil.rmtree(folder)


def print_output(files: "RunFiles", input_path: Path) -> None:
    """Writes the output to stdout."""
    try:
        copy_out(files.output)
    except OSError:
        say(f"nightmill: the output could not be written to stdout; it is in {files.output}")
        raise
    if input_path == STDIN:
        files.output.unlink()


def show_summary(summary: "RunSummary", input_path: Path, *, is_printed: bool, as_json: bool) -> None:
    """The files on stdout, unless the output itself goes there; the rest on stderr."""
    if as_json:
        out_json(_wire(summary))
        return
    if summary.errors:
        for error in summary.errors[:_LISTED]:
            say(f"line {error.line}: {clean(error.message)}" if error.line else clean(error.message))
        say(f"nightmill: nothing was sent; see every kind of error with: nightmill validate {input_path}")
        return
    counts = counts_text(summary.total, summary.completed, summary.failed)
    if summary.is_from_before:
        say(f"{input_path} was finished before: {counts}")
        say(
            "send all lines again with --again"
            + (", the failed ones with --retry-failed" * (summary.failed > 0))
        )
    else:
        say(f"{summary.status}: {counts}")
        say(f"{_duration(summary)}{_tokens(summary.usage)}")
        if summary.failed and summary.error_path is not None:
            say(_failures(summary.error_path, summary.failed))
            if input_path != STDIN:
                say("send the failed lines again with the same command and --retry-failed")
    for path in (summary.output_path, summary.error_path):
        if path is None:
            continue
        if is_printed:
            if path == summary.error_path:
                say(f"the failed lines are in {path}")
        else:
            out(str(path))


def _duration(summary: "RunSummary") -> str:
    before = f", {summary.done_before:,} lines done before" if summary.done_before else ""
    elapsed_s = summary.elapsed_s
    if elapsed_s < 100:
        return f"{elapsed_s:.1f} s{before}"
    minutes, seconds = divmod(round(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s") + before


def _tokens(usage: "Usage") -> str:
    if not usage.total_tokens:
        return ""
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    return f", {usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out"


def _failures(path: Path, failed: int) -> str:
    # Imported here: it needs the openai package, and most runs have no failures.
    from nightmill.client.failures import grouped

    with path.open("rb") as stream:
        return failures_text(grouped(islice(stream, _READ_FAILURES)), failed)


def refuse_both_on_stdout(*, is_printed: bool, as_json: bool) -> None:
    if is_printed and as_json:
        raise RequestError("--json and the output lines can't both go to stdout; name a file with -o")


def _wire(summary: "RunSummary") -> dict[str, Any]:
    usage = summary.usage
    return {
        "status": str(summary.status),
        "request_counts": {
            "total": summary.total,
            "completed": summary.completed,
            "failed": summary.failed,
        },
        "output_path": str(summary.output_path) if summary.output_path else None,
        "error_path": str(summary.error_path) if summary.error_path else None,
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
        "elapsed_s": round(summary.elapsed_s, 3),
        "done_before": summary.done_before,
        "is_from_before": summary.is_from_before,
        "errors": [
            {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
            for error in summary.errors
        ],
    }
