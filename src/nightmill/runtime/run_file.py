"""`nightmill run`: answers one JSONL file without a server, with the same store, parts and roles.

All state is in a work folder beside the input. After Ctrl-C or a crash the same command continues the run.
The output appears complete, under its final name, or not at all. Progress is displayed by the caller.
"""

import asyncio
import hashlib
import math
import random
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nightmill.blobs import new_blob
from nightmill.core.batch import ENDPOINTS, Batch, LineError, Status, Usage
from nightmill.core.request_line import endpoint_in
from nightmill.errors import RequestError, SetupError, UnavailableError
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.roles.loop import Notifier, keep_turning
from nightmill.roles.upstream_manager import UpstreamManager
from nightmill.roles.worker import Worker
from nightmill.runtime.components import Components, open_components
from nightmill.runtime.data_folder_lock import locked_folder
from nightmill.runtime.problems import ProblemLog, Problems
from nightmill.runtime.process_setup import limit_memory_use
from nightmill.runtime.run_files import delete_earlier, replaced, work_folder
from nightmill.runtime.supervisor import Program, Supervisor
from nightmill.runtime.upstreams import choose_upstream, listens
from nightmill.settings import BlobSettings, QuotaSettings, Settings
from nightmill.store.migrate import migrate

_PROJECT = ProjectId("default")
_INPUT_KEY = "files/input"
_YEAR_S = 365 * 86_400
_POLL_S = 0.2
_START_S = 10.0
_UNLIMITED = 1 << 40
GO_ON = "run it again to go on"


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run. `elapsed_s` counts from this start of the command, not from the first.
    `held` says in words which models of the upstream are held, why, and until when; None while none is."""

    status: Status
    total: int
    completed: int
    failed: int
    in_flight: int
    elapsed_s: float
    held: str | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The result of a run. A path is None when the run has no line for that file.

    Attributes:
        usage: of all starts of the run; none where the run had been finished before.
        errors: the invalid lines, if the status is `failed`.
        elapsed_s: since this start.
        done_before: the lines that were done before this start.
        is_from_before: whether the run had been finished before, so that nothing was done.
    """

    status: Status
    total: int
    completed: int
    failed: int
    output_path: Path | None
    error_path: Path | None
    usage: Usage
    errors: tuple[LineError, ...] = field(default=())
    elapsed_s: float = 0.0
    done_before: int = 0
    is_from_before: bool = False


async def run_file(
    settings: Settings,
    input_path: Path,
    *,
    output_path: Path,
    error_path: Path,
    endpoint: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    timeout_s: float | None = None,
) -> RunSummary:
    """Answers every line of `input_path`; an unfinished run of it goes on.

    Args:
        endpoint: the batch's endpoint; None takes the `url` of the first line.
        timeout_s: how long this start may take; None for as long as it takes.

    Raises:
        RequestError: the input is missing, empty, or has changed since an unfinished run of it.
        SetupError: no upstream was named, or the work folder is in use.
        UnavailableError: the time is over. The next start goes on.
    """
    if not await asyncio.to_thread(input_path.is_file):
        raise RequestError(f"there is no file at {input_path}")
    settings = _run_settings(settings, work_folder(input_path))
    say = say or _say_nothing
    if settings.emulator.enabled:
        say("EMULATED: every answer is made up; no model is asked")
    settings, programs = await choose_upstream(settings, say=say)
    endpoint = endpoint or _endpoint_of_first_line(input_path)
    started = time.monotonic()
    with locked_folder(settings.folder):
        await migrate(settings.store_url)
        notifier, problems = Notifier(), ProblemLog(_report_nothing)
        async with open_components(settings, emit=problems.emit, notifier=notifier) as components:
            batch = await _batch(components, input_path, endpoint)
            done_before = batch.tally.answered
            if done_before and say is not None:
                say(f"going on with the run of {input_path}: {_counts(batch)}")
            limit_memory_use()
            manager = components.upstream_manager()
            async with (
                manager.opened() as upstreams,
                _roles(components, manager, components.worker(upstreams), programs) as worker,
            ):

                def report(batch: Batch) -> None:
                    problems.refresh(worker.held)
                    if on_progress is not None:
                        on_progress(_progress(batch, worker, problems, time.monotonic() - started))

                end_at = math.inf if timeout_s is None else started + timeout_s
                batch = await _ended(components, batch, report, end_at=end_at)
            if not batch.status.is_terminal:
                message = f"{input_path} is not finished after {timeout_s:g} s: {_counts(batch)}"
                raise UnavailableError(f"{message}; {GO_ON}")
            outputs: tuple[Path | None, Path | None] = (None, None)
            if batch.status != Status.FAILED:
                outputs = (
                    await _write_output(components, batch.output_file_id, output_path),
                    await _write_output(components, batch.error_file_id, error_path),
                )
    await asyncio.to_thread(shutil.rmtree, settings.folder)
    tally = batch.tally
    return RunSummary(
        batch.status,
        batch.total,
        tally.completed,
        tally.failed,
        *outputs,
        tally.usage,
        batch.errors,
        elapsed_s=time.monotonic() - started,
        done_before=done_before,
    )


async def _ended(
    components: Components, batch: Batch, report: Callable[[Batch], None], *, end_at: float
) -> Batch:
    """Waits for the end of the batch, or of the time; returns the batch as it is then.

    Args:
        end_at: by the monotonic clock.
    """
    notifier = components.notifier
    while True:
        count_before = notifier.count
        batch = await components.store.batches.get(_PROJECT, batch.id) or batch
        report(batch)
        if batch.status.is_terminal or time.monotonic() >= end_at:
            return batch
        await notifier.wait(since=count_before, timeout_s=_POLL_S)


def _run_settings(settings: Settings, folder: Path) -> Settings:
    """Lifts all limits except those on a single line: the others protect a server from its clients."""
    limits = settings.limits.model_copy(
        update={
            "lines_per_file": _UNLIMITED,
            "input_file_bytes": _UNLIMITED,
            "embedding_inputs": _UNLIMITED,
            "models_per_file": _UNLIMITED,
        }
    )
    return settings.model_copy(
        update={
            "folder": folder,
            "store": None,
            "blobs": BlobSettings(),
            "limits": limits,
            "quota": QuotaSettings(),
        }
    )


def _endpoint_of_first_line(path: Path) -> str:
    with path.open("rb") as file:
        line = next((line for line in file if line.strip()), b"")
    url = endpoint_in(line)
    if url not in ENDPOINTS:
        message = (
            f"the first line of {path} names no known endpoint in 'url'; name it with --endpoint, "
            "or see every bad line with 'nightmill validate'"
        )
        raise RequestError(message, param="url")
    return url


async def _batch(components: Components, path: Path, endpoint: str) -> Batch:
    """The batch of this input, made on the first run of it."""
    await components.store.leases.release_all()
    await components.blobs.sweep_unfinished()
    stat = await asyncio.to_thread(path.stat)
    fingerprint = f"{stat.st_size} {stat.st_mtime_ns} {endpoint}"
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    if await components.blobs.size_bytes(_INPUT_KEY) is None:
        await _copy_input(components, path)
    now = int(time.time())
    batch = Batch(
        id=BatchId("batch_" + digest[:32]),
        project_id=_PROJECT,
        endpoint=endpoint,
        input_file_id=FileId("file-input"),
        input_blob_key=_INPUT_KEY,
        input_bytes=stat.st_size,
        completion_window="365d",
        created_at=now,
        expires_at=now + _YEAR_S,
    )
    begun = (await components.store.batches.list(_PROJECT, limit=1)).items
    if not begun:
        return await components.store.batches.create(batch)
    if begun[0].id != batch.id:
        folder = components.settings.folder
        message = (
            f"{path} or its endpoint has changed since its unfinished run in {folder};"
            " begin anew with --again (in Python rerun='all')"
        )
        raise RequestError(message)
    return begun[0]


async def _copy_input(components: Components, path: Path) -> None:
    """Copies the input, so that a change of the file during the run can't mix two versions."""
    async with new_blob(components.blobs, _INPUT_KEY) as writer:
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, 1 << 20):
                await writer.write(chunk)


@asynccontextmanager
async def _roles(
    components: Components, manager: UpstreamManager, worker: Worker, programs: list[Program]
) -> AsyncGenerator[Worker]:
    """Runs every role in this process, and the program of the upstream if there is one."""
    supervisor = Supervisor(
        emit=components.emit, notify_local=components.notifier.notify_local, monotonic=time.monotonic
    )
    stop = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            supervisor.start(programs, group=group)
            for role in (components.intake(), components.finalizer(), components.maintenance()):
                group.create_task(
                    keep_turning(
                        role,
                        notifier=components.notifier,
                        stop=stop,
                        emit=components.emit,
                        random=random.random,
                    )
                )
            url = components.settings.upstream.url
            if programs and url is not None:
                await listens(url, within_s=_START_S)
            managing = group.create_task(manager.run(worker.upstreams))
            group.create_task(worker.run(stop, grace_s=lambda: 0.0))
            yield worker
            managing.cancel()
            stop.set()
            components.notifier.notify_local()
            await supervisor.drain(grace_s=2.0)
    finally:
        supervisor.kill()


async def _write_output(components: Components, file_id: FileId | None, path: Path) -> Path | None:
    """Writes a finished file to `path`, complete or not at all. Without a file, that of an earlier run is
    deleted."""
    if file_id is None:
        await asyncio.to_thread(delete_earlier, path)
        return None
    file = await components.store.files.get(_PROJECT, file_id)
    if file is None:
        raise SetupError(
            f"the work folder {components.settings.folder} has lost {file_id}; remove it and run again"
        )
    with replaced(path) as target:
        async for chunk in components.blobs.stream(file.blob_key):
            await asyncio.to_thread(target.write, chunk)
    return path


def _progress(batch: Batch, worker: Worker, problems: ProblemLog, elapsed_s: float) -> Progress:
    tally = batch.tally
    return Progress(
        batch.status,
        batch.total,
        tally.completed,
        tally.failed,
        worker.in_flight,
        elapsed_s,
        problems.problems.text_with_next_attempts,
    )


def _counts(batch: Batch) -> str:
    tally = batch.tally
    return f"{tally.answered:,} of {batch.total:,} done ({tally.completed:,} ok, {tally.failed:,} failed)"


def _report_nothing(_problems: Problems) -> None:
    return


def _say_nothing(_text: str) -> None:
    return
