"""`nightmill run`: answers a file without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode, end_code
from nightmill.cli.screen import Json, clean, out, out_json, say

if TYPE_CHECKING:
    from nightmill.runtime.run_file import Progress, RunSummary

_LISTED = 20


def run(
    input_path: flags.Input,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Lines answered with a 2xx [IN_output.jsonl]."),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", "-e", metavar="FILE", help="All other lines [IN_error.jsonl].")
    ] = None,
    upstream: flags.Upstream = None,
    upstream_key: flags.UpstreamKey = None,
    model: flags.Model = None,
    emulate: flags.Emulate = False,
    endpoint: flags.Endpoint = None,
    concurrency: flags.Concurrency = None,
    log_level: flags.LogLevel = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Answer every line of a file, without a server.

    After Ctrl-C or a crash, the same command continues where it stopped: unfinished work is kept in
    IN.jsonl.nightmill beside the input. The output file appears only when it is complete.
    """
    tree: dict[str, Any] = flags.upstream_tree(
        upstream=upstream, upstream_key=upstream_key, model=model, emulate=emulate, concurrency=concurrency
    )
    # The progress display is enough of a log unless more is asked for.
    settings = flags.settings_of(tree | {"log_level": log_level or "warning"}, config)
    from nightmill.client import local
    from nightmill.runtime.run_file import run_file

    default_output, default_errors = local.default_paths(input_path)
    latest: list[Progress] = []

    try:
        with local.reporting() as show:

            def report(progress: "Progress") -> None:
                latest[:] = [progress]
                show(progress)

            summary = local.finished(
                run_file(
                    settings,
                    input_path,
                    output_path=output or default_output,
                    error_path=errors or default_errors,
                    endpoint=endpoint,
                    on_progress=report,
                    say=say,
                )
            )
    except KeyboardInterrupt:
        so_far = (
            f" with {latest[0].completed + latest[0].failed} of {latest[0].total} answered" if latest else ""
        )
        say(f"nightmill: stopped{so_far}; the same command goes on from there")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        out_json(_wire(summary))
    else:
        _tell(summary, input_path)
    raise typer.Exit(end_code(summary.status, summary.failed))


def _tell(summary: "RunSummary", input_path: Path) -> None:
    if summary.errors:
        for error in summary.errors[:_LISTED]:
            say(f"line {error.line}: {clean(error.message)}" if error.line else clean(error.message))
        say(f"nightmill: nothing was sent; see every bad line with: nightmill validate {input_path}")
        return
    say(f"{summary.status}: {summary.completed} answered, {summary.failed} failed of {summary.total}")
    for path in (summary.output_path, summary.error_path):
        if path is not None:
            out(str(path))


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
        "errors": [
            {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
            for error in summary.errors
        ],
    }
