"""What `nightmill run` does with an input: begin, go on, nothing because it is finished, or again.

The state of a run is in files: the work folder while it is unfinished, then its output and error file. The
work itself belongs to `run_file`, the comparison of the files to `run_files`.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any

from nightmill.core.batch import Status, Usage
from nightmill.errors import RequestError
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.run_file import Progress, RunSummary, run_file
from nightmill.runtime.run_files import (
    LineCounts,
    RunFiles,
    counts_if_finished,
    merge_retry,
    write_failed,
)
from nightmill.settings import Settings
from nightmill.validation.foreign_format import BEGINNING_BYTES, ForeignFormat, foreign_format


class Rerun(StrEnum):
    """Which lines of a finished run are sent again."""

    NONE = "none"
    ALL = "all"
    FAILED = "failed"


async def run_input(
    settings: Settings,
    files: RunFiles,
    *,
    rerun: Rerun = Rerun.NONE,
    endpoint: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    timeout_s: float | None = None,
) -> RunSummary:
    """Answers the lines of an input that have no answer yet.

    Args:
        rerun: `ALL` begins anew, `FAILED` sends the failed lines of a finished run again.
        endpoint, on_progress, say, timeout_s: as in `run_file`.

    Raises:
        RequestError: as `run_file`; or the output is of another input; or a run to be retried is not
            finished.
        SetupError, UnavailableError: as `run_file`.
    """
    if not await asyncio.to_thread(files.input.is_file):
        raise RequestError(f"there is no file at {files.input}")
    found = await asyncio.to_thread(_foreign, files.input)
    if found is not None:
        raise RequestError(found.refusal(str(files.input)), code=found.code)

    def answered(wanted: RunFiles) -> Coroutine[Any, Any, RunSummary]:
        return run_file(
            settings,
            wanted.input,
            output_path=wanted.output,
            error_path=wanted.errors,
            endpoint=endpoint,
            on_progress=on_progress,
            say=say,
            timeout_s=timeout_s,
        )

    match await asyncio.to_thread(_next_step, files, rerun):
        case LineCounts() as counts:
            return _summary(files, counts, is_from_before=True)
        case _Step.RUN:
            return await answered(files)
        case _Step.RETRY:
            return await _retried(files, answered)


class _Step(Enum):
    RUN = auto()
    RETRY = auto()


def _next_step(files: RunFiles, rerun: Rerun) -> _Step | LineCounts:
    """What there is to do; the counts if there is nothing."""
    if rerun == Rerun.ALL:
        _discard(files)
        return _Step.RUN
    if files.retry.input.exists():
        return _Step.RETRY
    if files.work_folder.exists():
        if rerun == Rerun.FAILED:
            raise RequestError(f"the run of {files.input} is not finished; finish it before a retry")
        return _Step.RUN
    counts = counts_if_finished(files)
    if rerun == Rerun.NONE:
        return _Step.RUN if counts is None else counts
    if counts is None:
        raise RequestError(
            f"there is no finished run of {files.input} whose failed lines could be sent again"
        )
    return _Step.RETRY if counts.failed else counts


async def _retried(files: RunFiles, answered: Callable[[RunFiles], Awaitable[RunSummary]]) -> RunSummary:
    """Sends the failed lines, and puts their new output lines in place of the old ones."""
    retry = files.retry
    await asyncio.to_thread(_prepare_retry, files)
    is_answered = not retry.work_folder.exists() and await asyncio.to_thread(counts_if_finished, retry)
    summary = None if is_answered else await answered(retry)
    if summary is not None and summary.status != Status.COMPLETED:
        await asyncio.to_thread(shutil.rmtree, retry.input.parent)
        return summary
    merged = _summary(files, await asyncio.to_thread(merge_retry, files))
    await asyncio.to_thread(shutil.rmtree, retry.input.parent)
    if summary is None:
        return merged
    return replace(merged, usage=summary.usage, elapsed_s=summary.elapsed_s)


def _prepare_retry(files: RunFiles) -> None:
    """Writes the failed request lines, unless an unfinished retry has them.

    Raises:
        RequestError: the input has changed since they were written.
    """
    wanted = files.retry.input
    if not wanted.exists():
        wanted.parent.mkdir(mode=0o700, exist_ok=True)
        write_failed(files, wanted)
    elif files.input.stat().st_mtime_ns > wanted.stat().st_mtime_ns:
        raise RequestError(
            f"{files.input} has changed since the unfinished retry of its failed lines in {wanted.parent};"
            " begin anew with --again (in Python rerun='all')"
        )


def _discard(files: RunFiles) -> None:
    """Deletes the state of unfinished runs, not the output of a finished one.

    Raises:
        SetupError: a run of the input is in progress.
    """
    for folder in (files.work_folder, files.retry.work_folder):
        if folder.exists():
            with locked_folder(folder):
                shutil.rmtree(folder)
    shutil.rmtree(files.retry.input.parent, ignore_errors=True)


def _foreign(path: Path) -> ForeignFormat | None:
    with path.open("rb") as stream:
        return foreign_format(stream.read(BEGINNING_BYTES))


def _summary(files: RunFiles, counts: LineCounts, *, is_from_before: bool = False) -> RunSummary:
    return RunSummary(
        Status.COMPLETED,
        counts.completed + counts.failed,
        counts.completed,
        counts.failed,
        files.output if counts.completed else None,
        files.errors if counts.failed else None,
        Usage(),
        is_from_before=is_from_before,
    )
