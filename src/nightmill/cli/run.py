"""`nightmill run`: answers a file without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode, end_code
from nightmill.cli.screen import Json, say
from nightmill.cli.streams import STDIN
from nightmill.errors import RequestError

if TYPE_CHECKING:
    from nightmill.runtime.rerun import Rerun
    from nightmill.runtime.run_file import Progress


def run(
    input_path: flags.Input,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Lines answered with a 2xx [IN_output.jsonl]; '-' prints them at the end.",
        ),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", "-e", metavar="FILE", help="All other lines [IN_error.jsonl].")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew, also if the file was finished before.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send the failed lines of a finished run again.")
    ] = False,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Stop then; the same command goes on."),
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
    IN.jsonl.nightmill beside the input. The output file appears only when it is complete. A file that
    was finished before is not sent again.
    """
    tree: dict[str, Any] = flags.upstream_tree(
        upstream=upstream, upstream_key=upstream_key, model=model, emulate=emulate, concurrency=concurrency
    )
    # The progress display is enough of a log unless more is asked for.
    settings = flags.settings_of(tree | {"log_level": log_level or "warning"}, config)
    from nightmill.cli.run_output import (
        is_printed,
        print_output,
        refuse_both_on_stdout,
        run_files,
        show_summary,
    )
    from nightmill.client import local
    from nightmill.runtime.rerun import run_input

    printed = is_printed(input_path, output)
    refuse_both_on_stdout(is_printed=printed, as_json=as_json)
    rerun = _rerun(again=again, retry_failed=retry_failed, input_path=input_path)
    latest: list[Progress] = []
    with run_files(input_path, output, errors) as files:
        try:
            with local.reporting(at_end="removed") as show:

                def report(progress: "Progress") -> None:
                    latest[:] = [progress]
                    show(progress)

                summary = local.finished(
                    run_input(
                        settings,
                        files,
                        rerun=rerun,
                        endpoint=endpoint,
                        on_progress=report,
                        say=say,
                        timeout_s=timeout_s,
                    )
                )
        except KeyboardInterrupt:
            say(_stopped(latest, again=again))
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        show_summary(summary, input_path, is_printed=printed, as_json=as_json)
        if printed and summary.output_path is not None:
            print_output(files, input_path)
    raise typer.Exit(end_code(summary.status, summary.failed))


def _rerun(*, again: bool, retry_failed: bool, input_path: Path) -> "Rerun":
    from nightmill.runtime.rerun import Rerun

    if again and retry_failed:
        raise RequestError("--again sends all lines and --retry-failed the failed ones; give one of the two")
    if input_path == STDIN:
        if retry_failed:
            raise RequestError("lines from stdin can't be retried; name the file they are from")
        return Rerun.ALL
    return Rerun.ALL if again else Rerun.FAILED if retry_failed else Rerun.NONE


def _stopped(latest: "list[Progress]", *, again: bool) -> str:
    from nightmill.core.words import counts_text

    so_far = ""
    if latest and latest[0].total:
        so_far = f" with {counts_text(latest[0].total, latest[0].completed, latest[0].failed)}"
    without = " without --again" if again else ""
    return f"nightmill: stopped{so_far}; the same command{without} goes on from there"
