"""`nightmill.run`: answer a JSONL file from Python without a server.

Makes settings of arguments, chooses default paths, shows progress, and starts an event loop where none runs.
The work is done by `runtime.rerun`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nightmill.client.progress import Snapshot, shown
from nightmill.settings import load

if TYPE_CHECKING:
    from nightmill.runtime.run_file import Progress, RunSummary

T = TypeVar("T")


def run(
    input_path: str | PathLike[str],
    *,
    upstream: str | None = None,
    upstream_key: str | None = None,
    model: str | PathLike[str] | None = None,
    emulate: bool = False,
    output: str | PathLike[str] | None = None,
    errors: str | PathLike[str] | None = None,
    endpoint: str | None = None,
    concurrency: int | Literal["auto"] | None = None,
    rerun: Literal["none", "all", "failed"] = "none",
    timeout_s: float | None = None,
    on_progress: "Callable[[Progress], None] | None" = None,
) -> "RunSummary":
    """Answers every request line of a JSONL file. Called again after an interruption, it continues where it
    stopped; called again after its end, it sends nothing and returns the counts.

    Args:
        input_path: the request lines. Unfinished work is kept beside it, in `<name>.nightmill`.
        upstream: base URL of the server that answers, or `auto`; or one of the two below.
        upstream_key: the upstream's API key.
        model: a GGUF file to answer with (extra `nightmill[llama]`).
        emulate: generated answers, for trials.
        output: file for lines answered with a 2xx; by default `<name>_output.jsonl` beside the input.
        errors: file for all other lines; by default `<name>_error.jsonl` beside the input.
        endpoint: by default that of the first line.
        concurrency: attempts in flight at once, or "auto" to find the number; None takes the setting.
        rerun: `all` sends every line again, `failed` the failed lines of a finished run.
        timeout_s: how long this call may take; None for as long as it takes.
        on_progress: called with each snapshot of the progress; None shows a progress bar on stderr.

    Returns:
        The summary. With any bad line the status is `failed`, no line is sent, and the bad lines are in
        `errors`.

    Raises:
        RequestError: the input is missing, empty, no request lines, or has changed since an unfinished run of
            it; or the output file is of another input.
        SetupError: no upstream, or a setting is wrong.
        UnavailableError: the time is over, or the storage is full; call it again to go on.
    """
    # Imported here: the client alone must not load the server.
    from nightmill.runtime.rerun import Rerun, run_input  # noqa: PLC0415 - see above
    from nightmill.runtime.run_files import RunFiles  # noqa: PLC0415 - see above

    flags: dict[str, Any] = {
        "upstream": {"url": upstream, "api_key": upstream_key, "concurrency": concurrency},
        "model": {"path": str(model) if model is not None else None},
        "emulator": {"enabled": True if emulate else None},
    }
    path = Path(input_path)
    default_output, default_errors = default_paths(path)
    files = RunFiles(
        path,
        Path(output) if output is not None else default_output,
        Path(errors) if errors is not None else default_errors,
    )
    with reporting(on_progress) as report:
        return finished(
            run_input(
                load(flags=flags),
                files,
                rerun=Rerun(rerun),
                endpoint=endpoint,
                on_progress=report,
                timeout_s=timeout_s,
            )
        )


def default_paths(input_path: Path) -> tuple[Path, Path]:
    """`in.jsonl` -> `in_output.jsonl` and `in_error.jsonl`, as in the API's file names."""
    stem = input_path.stem if input_path.suffix == ".jsonl" else input_path.name
    return input_path.with_name(f"{stem}_output.jsonl"), input_path.with_name(f"{stem}_error.jsonl")


@contextmanager
def reporting(
    on_progress: "Callable[[Progress], None] | None" = None,
) -> "Generator[Callable[[Progress], None]]":
    """The function that `run_file` reports to: the caller's own, or a display on stderr."""
    if on_progress is not None:
        yield on_progress
        return
    with shown() as show:
        yield lambda progress: show(snapshot(progress))


def snapshot(progress: "Progress") -> Snapshot:
    return Snapshot(
        status=str(progress.status),
        total=progress.total,
        completed=progress.completed,
        failed=progress.failed,
        in_flight=progress.in_flight,
        held=progress.held,
    )


def finished(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, also where an event loop already runs (a notebook)."""
    if not _loop_runs_here():
        return _in_a_loop(work)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="nightmill-run") as pool:
        return pool.submit(_in_a_loop, work).result()


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
