"""`nightmill.run`: answer a JSONL file, rows or a DataFrame from Python without a server.

Makes settings of arguments, chooses default paths, shows progress, and starts an event loop where none runs.
The work is done by `runtime.rerun`; rows become request lines in `local_rows`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, cast, overload

from typing_extensions import Unpack

from nightmill.client.progress import AtEnd, Snapshot, shown
from nightmill.errors import RequestError
from nightmill.settings import load

if TYPE_CHECKING:
    from nightmill.client.answers import Answer
    from nightmill.client.frames import Frame
    from nightmill.client.request_rows import Row
    from nightmill.client.submission import Rows
    from nightmill.runtime.run_file import Progress, RunSummary

T = TypeVar("T")
FrameT = TypeVar("FrameT", bound="Frame")


class RunArguments(TypedDict, total=False):
    """What `run` takes besides its input.

    Attributes:
        upstream: base URL of the server that answers, or `auto`; or one of the two below.
        upstream_key: the upstream's API key.
        model: a GGUF file to answer with (extra `nightmill[llama]`).
        emulate: generated answers, for trials.
        output: file for lines answered with a 2xx; of a file by default `<name>_output.jsonl` beside it. Of
            rows by default none; with one, an interrupted call goes on.
        errors: file for all other lines; by default `<name>_error.jsonl` beside the input, of rows beside the
            output.
        endpoint: by default that of the first line; of texts and prompts chat completions.
        concurrency: attempts in flight at once, or "auto" to find the number; None takes the setting.
        rerun: `all` sends every line again, `failed` the failed lines of a finished run.
        timeout_s: how long this call may take; None for as long as it takes.
        on_progress: called with each snapshot of the progress; None shows a progress bar on stderr.
    """

    upstream: str | None
    upstream_key: str | None
    model: str | PathLike[str] | None
    emulate: bool
    output: str | PathLike[str] | None
    errors: str | PathLike[str] | None
    endpoint: str | None
    concurrency: int | Literal["auto"] | None
    rerun: Literal["none", "all", "failed"]
    timeout_s: float | None
    on_progress: "Callable[[Progress], None] | None"


class RowArguments(RunArguments, total=False):
    """What `run` takes besides rows: that of `RunArguments`, and these.

    Attributes:
        prompt: makes a request of each text or row of fields, as for `Client.send`.
        model_name: the model of rows that name none; a GGUF file and the emulator take any name.
        parameters: fields of every body that does not have them, such as `{"temperature": 0}`.
    """

    prompt: str | None
    model_name: str | None
    parameters: "Row | None"


# A text is an iterable of texts too, for the type checker; it is a path.
@overload
def run(  # pyright: ignore[reportOverlappingOverload] - see above
    source: str | PathLike[str], **arguments: Unpack[RunArguments]
) -> "RunSummary": ...


@overload
def run(
    source: "FrameT", *, answer_type: type[Any] | None = None, **arguments: Unpack[RowArguments]
) -> "FrameT": ...


@overload
def run(source: "Rows", *, answer_type: type[T], **arguments: Unpack[RowArguments]) -> "list[Answer[T]]": ...


@overload
def run(source: "Rows", *, answer_type: None = None, **arguments: Unpack[RowArguments]) -> "list[Answer]": ...


def run(source: Any, *, answer_type: type[Any] | None = None, **arguments: Unpack[RowArguments]) -> Any:
    """Answers every request line of a JSONL file, or rows, without a server.

    Called again after an interruption, it continues where it stopped; called again after its end, it sends
    nothing. Unfinished work is kept beside the input in `<name>.nightmill`.

    Args:
        source: the path of a file of request lines; or rows as for `Client.send`: request lines, bodies,
            texts, or with a `prompt` fields; or a DataFrame.
        answer_type: of rows: asks for JSON of this type and makes an instance of each answer.
        arguments: see `RunArguments`, and `RowArguments` for rows.

    Returns:
        Of a file the summary. With any bad line its status is `failed`, no line was sent, and the bad lines
        are in its `errors`. Of rows a list with an answer for each; of a DataFrame a copy with the answers.

    Raises:
        RequestError: the input is missing, empty, no request lines, or has changed since an unfinished run of
            it; or the output file is of another input; or a row is invalid.
        SetupError: no upstream, or a setting is wrong.
        UnavailableError: the time is over, or the storage is full; call it again to go on.

    Example:
        ```python
        import nightmill

        answers = nightmill.run(["Peru", "Laos"], prompt="A river in {text}?", emulate=True)
        print([answer.text for answer in answers])
        ```
    """
    # Imported here, as below: the client alone must not load more than it needs.
    from nightmill.client.request_rows import refuse_unknown  # noqa: PLC0415 - see above

    refuse_unknown(arguments, RowArguments.__optional_keys__)
    if isinstance(source, str | PathLike):
        for_rows = RowArguments.__optional_keys__ - RunArguments.__optional_keys__
        if answer_type is not None or for_rows & arguments.keys():
            names = ", ".join(sorted({"answer_type", *for_rows}))
            raise RequestError(f"{names} are for rows; a text or a path names a file of whole request lines")
        path = Path(cast("str | PathLike[str]", source))
        default_output, default_errors = default_paths(path)
        output, errors = _path(arguments.get("output")), _path(arguments.get("errors"))
        return _run_files((path, output or default_output, errors or default_errors), arguments)
    # Imported here: a file needs nothing of the client.
    from nightmill.client.local_rows import LocalRows  # noqa: PLC0415 - see above

    takes_any_model = arguments.get("emulate") or arguments.get("model") is not None
    rows = LocalRows(
        source,
        prompt=arguments.get("prompt"),
        model=arguments.get("model_name") or ("model" if takes_any_model else None),
        parameters=arguments.get("parameters"),
        endpoint=arguments.get("endpoint"),
        answer_type=answer_type,
    )
    return rows.answered(
        lambda files, endpoint: _run_files(
            (files.input, files.output, files.errors), {**arguments, "endpoint": endpoint}
        ),
        output=_path(arguments.get("output")),
        errors=_path(arguments.get("errors")),
    )


def _run_files(paths: tuple[Path, Path, Path], arguments: RunArguments) -> "RunSummary":
    # Imported here: the client alone must not load the server.
    from nightmill.runtime.rerun import Rerun, run_input  # noqa: PLC0415 - see above
    from nightmill.runtime.run_files import RunFiles  # noqa: PLC0415 - see above

    model = arguments.get("model")
    flags: dict[str, Any] = {
        "upstream": {
            "url": arguments.get("upstream"),
            "api_key": arguments.get("upstream_key"),
            "concurrency": arguments.get("concurrency"),
        },
        "model": {"path": str(model) if model is not None else None},
        "emulator": {"enabled": True if arguments.get("emulate") else None},
    }
    with reporting(arguments.get("on_progress")) as report:
        return finished(
            run_input(
                load(flags=flags),
                RunFiles(*paths),
                rerun=Rerun(arguments.get("rerun", "none")),
                endpoint=arguments.get("endpoint"),
                on_progress=report,
                timeout_s=arguments.get("timeout_s"),
            )
        )


def _path(given: str | PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)


def default_paths(input_path: Path) -> tuple[Path, Path]:
    """`in.jsonl` -> `in_output.jsonl` and `in_error.jsonl`, as in the API's file names."""
    stem = input_path.stem if input_path.suffix == ".jsonl" else input_path.name
    return input_path.with_name(f"{stem}_output.jsonl"), input_path.with_name(f"{stem}_error.jsonl")


@contextmanager
def reporting(
    on_progress: "Callable[[Progress], None] | None" = None, *, at_end: AtEnd = "kept"
) -> "Generator[Callable[[Progress], None]]":
    """The function that `run_file` reports to: the caller's own, or a display on stderr."""
    if on_progress is not None:
        yield on_progress
        return
    with shown(at_end=at_end) as show:
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
    """Runs `work` to its end, also where an event loop already runs (a notebook). Ctrl-C cancels it."""
    if not _loop_runs_here():
        try:
            return _in_a_loop(work)
        finally:
            # Ctrl-C before the loop runs leaves the work unstarted, which Python warns of otherwise.
            work.close()
    running = _Cancellable(work)
    try:
        # Not a pool: Ctrl-C while its thread starts would leave the thread running.
        Thread(target=running.run, name="nightmill-run", daemon=True).start()
        return running.future.result()
    except KeyboardInterrupt:
        running.cancel()
        wait([running.future])
        raise


class _Cancellable(Generic[T]):
    """Work in the event loop of another thread, which does not see Ctrl-C."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.future: Future[T] = Future()
        self._work = work
        self._is_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None

    def run(self) -> None:
        """Sets the future, whatever comes of the work."""
        try:
            self.future.set_result(_in_a_loop(self._run()))
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self.future.set_exception(error)

    def cancel(self) -> None:
        """From another thread."""
        self._is_cancelled = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)

    async def _run(self) -> T:
        self._task = asyncio.ensure_future(self._work)
        self._loop = asyncio.get_running_loop()
        if self._is_cancelled:
            self._task.cancel()
        return await self._task


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
