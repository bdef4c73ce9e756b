"""Sends rows, waits, and returns the answers joined to their requests: a batch in three calls or in one.

Uploads, creates, polls and downloads with `BatchApi` and the official `openai` package. Rows and answers pass
through files, so memory does not depend on their number. The display of progress belongs to `progress`.
"""

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Literal, Self, cast

from openai import APIConnectionError, APIError, InternalServerError, OpenAI, RateLimitError, omit
from openai.types import FileObject

from nightmill.client import download
from nightmill.client.answers import Answer, Row, joined, write_rows
from nightmill.client.api import ApiKeyAuth, Batch, BatchApi, CreateBatchRequest, connection
from nightmill.client.insight import Forecast, InsightApi, Why
from nightmill.client.progress import Snapshot, shown
from nightmill.client.results import PATIENCE_S, FollowedLine, Outcome, WantedResults
from nightmill.client.retries import RetryApi
from nightmill.client.server_errors import Server
from nightmill.core.batch import TERMINAL
from nightmill.core.batch_options import BatchOptions
from nightmill.errors import RequestError, UnavailableError

# OpenAI's limit for a batch file sent in one request; a server that takes larger ones takes them in parts.
LARGEST_SINGLE_BYTES = 209_715_200
PART_BYTES = 16 << 20
FIRST_POLL_S = 0.05
LONGEST_POLL_S = 3.0
POLL_GROWTH = 1.4
# Beyond the completion window: writing the files, and clocks that differ.
AFTER_WINDOW_S = 3_600.0


class Client:
    """A client of one batch server.

    Args:
        base_url: up to and with `/v1`; else `OPENAI_BASE_URL`, else nightmill on this machine.
        auth: the key as an object that `repr` does not show.
        api_key: the key; else `OPENAI_API_KEY`. A server without keys ignores it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        auth: ApiKeyAuth | None = None,
        *,
        api_key: str | None = None,
    ) -> None:
        self.openai: OpenAI = Server(**connection(base_url, auth, api_key))
        self.api = BatchApi(openai_client=self.openai)
        self.input = self.api.input
        self.webhooks = self.api.webhooks
        self.retries = RetryApi(self.openai)
        self.insight = InsightApi(self.openai)

    def close(self) -> None:
        self.openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def upload(self, path: Path, *, purpose: str = "batch") -> FileObject:
        """Uploads a file, streamed from disk; one too large for a single request goes in parts."""
        # The package types purposes as literals; the server decides which exist.
        known = cast("Literal['batch']", purpose)
        if path.stat().st_size <= LARGEST_SINGLE_BYTES:
            with path.open("rb") as stream:
                return self.openai.files.create(file=stream, purpose=known)
        upload = self.openai.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose=known, part_size=PART_BYTES
        )
        if upload.file is None:
            raise UnavailableError(f"{upload.id} was completed without a file; try again")
        return upload.file

    def files(self, *, purpose: str | None = None) -> Iterator[FileObject]:
        """Every file, newest first, page by page."""
        yield from self.openai.files.list(purpose=omit if purpose is None else purpose)

    def submit_file(
        self,
        path: Path,
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        options: BatchOptions | None = None,
    ) -> Batch:
        """Uploads a JSONL file of request lines and creates its batch."""
        uploaded = self.upload(path)
        request = CreateBatchRequest(
            input_file_id=uploaded.id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            priority=priority,
            options=options,
        )
        return self.api.create_batch(request)

    def submit(
        self,
        rows: Iterable[Row],
        *,
        endpoint: str | None = None,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        options: BatchOptions | None = None,
    ) -> Batch:
        """Sends rows as a new batch and returns at once.

        A row is a whole request line or only its body; see `answers.write_rows` for what is filled in.
        """
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            path = Path(folder) / "requests.jsonl"
            endpoint = write_rows(rows, path, endpoint=endpoint, model=model)
            return self.submit_file(
                path,
                endpoint=endpoint,
                completion_window=completion_window,
                metadata=metadata,
                priority=priority,
                options=options,
            )

    def wait(
        self,
        batch_id: str,
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """Polls until the batch has ended, quickly at first, then every few seconds.

        Args:
            timeout_s: None waits an hour longer than the batch's own window.
            on_change: called with the batch after each poll; None shows a progress bar on stderr.

        Raises:
            UnavailableError: the time is over. The batch continues on the server.
            openai.APIError: the server refused, or was unreachable for two minutes. The batch continues on
            the server.
        """
        with _reporting(on_change, self.api.insight) as report:
            batch = self.api.retrieve_batch(batch_id)
            begun = seen = monotonic()
            if timeout_s is None:
                window_s = (batch.expires_at or batch.created_at + 86_400) - batch.created_at
                timeout_s = window_s + AFTER_WINDOW_S
            pause_s = FIRST_POLL_S
            report(batch)
            while batch.status not in TERMINAL:
                left_s = begun + timeout_s - monotonic()
                if left_s <= 0:
                    message = f"{batch_id} is still {batch.status} after {timeout_s:g} s; wait for it again"
                    raise UnavailableError(message)
                sleep(min(pause_s, left_s))
                pause_s = min(pause_s * POLL_GROWTH, LONGEST_POLL_S)
                try:
                    batch = self.api.retrieve_batch(batch_id)
                except (APIConnectionError, InternalServerError, RateLimitError):
                    # The batch continues while the server restarts, so waiting continues too.
                    if monotonic() - seen > PATIENCE_S:
                        raise
                    continue
                seen = monotonic()
                report(batch)
            return batch

    def answers(self, batch: Batch | str) -> Iterator[Answer]:
        """The answers of an ended batch, joined to the lines of its input file, in their order.

        Raises:
            RequestError: the batch failed validation; the message holds the first error.
            UnavailableError: the batch has not ended yet.
        """
        batch = self.api.retrieve_batch(batch) if isinstance(batch, str) else batch
        _refuse_without_answers(batch)
        return self._joined(batch)

    def _joined(self, batch: Batch) -> Iterator[Answer]:
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            requests = Path(folder) / "requests.jsonl"
            download.save(self.openai, batch.input_file_id, requests)
            files: list[Path] = []
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    path = Path(folder) / f"answers-{len(files)}.jsonl"
                    download.save(self.openai, file_id, path)
                    files.append(path)
            yield from joined(requests, *files)

    def send(
        self,
        rows: Iterable[Row],
        *,
        endpoint: str | None = None,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        options: BatchOptions | None = None,
        timeout_s: float | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> Iterator[Answer]:
        """Sends rows, waits with a progress bar and returns the answers: `submit`, `wait`, `answers`."""
        batch = self.submit(
            rows,
            endpoint=endpoint,
            model=model,
            completion_window=completion_window,
            metadata=metadata,
            priority=priority,
            options=options,
        )
        return self.answers(self.wait(batch.id, timeout_s=timeout_s, on_change=on_change))

    def follow(
        self,
        batch_id: str,
        *,
        after: str | None = None,
        outcome: Outcome | None = None,
        codes: Sequence[str] = (),
        custom_ids: Sequence[str] = (),
        patience_s: float = PATIENCE_S,
    ) -> Generator[FollowedLine]:
        """Each output line once, as it is answered, until the batch has ended; see `results.follow`.

        Args:
            after: the cursor of the last line that you have.
            outcome, codes, custom_ids: only lines that match all that are given.
        """
        wanted = WantedResults(after=after, outcome=outcome, codes=codes, custom_ids=custom_ids)
        return self.api.follow(batch_id, wanted, patience_s=patience_s)

    def lines(self, file_id: str) -> Iterator[bytes]:
        """The lines of a file as they arrive."""
        return download.lines(download.chunks(self.openai, file_id))

    def save(self, file_id: str, path: Path) -> int:
        """Downloads a file; `path` appears only when the file is complete. Returns its size in bytes."""
        return download.save(self.openai, file_id, path)


class _InsightSource:
    """What limits a batch and when it will end, as long as the server says so: only nightmill does."""

    def __init__(self, insight: InsightApi) -> None:
        self._insight: InsightApi | None = insight

    def of(self, batch: Batch) -> tuple[Why | None, Forecast | None]:
        if self._insight is None or batch.status in TERMINAL:
            return None, None
        try:
            return self._insight.both(batch.id)
        except (APIConnectionError, InternalServerError, RateLimitError):
            return None, None
        except APIError:
            self._insight = None
            return None, None


def snapshot(batch: Batch, why: Why | None = None, forecast: Forecast | None = None) -> Snapshot:
    counts = batch.request_counts
    return Snapshot(
        why=None if why is None else why.sentence,
        ends_at=None if forecast is None else forecast.ends_at,
        latest_at=None if forecast is None else forecast.latest_at,
        in_flight=None if forecast is None else forecast.in_flight,
        status=batch.status,
        total=counts.total if counts else 0,
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
    )


@contextmanager
def _reporting(
    on_change: Callable[[Batch], None] | None, insight: InsightApi
) -> Generator[Callable[[Batch], None]]:
    if on_change is not None:
        yield on_change
        return
    source = _InsightSource(insight)
    with shown() as show:
        yield lambda batch: show(snapshot(batch, *source.of(batch)))


def _refuse_without_answers(batch: Batch) -> None:
    if batch.status not in TERMINAL:
        message = f"{batch.id} is {batch.status}; wait for it to end before its answers are read"
        raise UnavailableError(message)
    if batch.status == "failed":
        listed = (batch.errors.data if batch.errors else None) or []
        first = f" line {listed[0].line}: {listed[0].message}" if listed else ""
        raise RequestError(f"{batch.id} failed with {len(listed)} bad lines;{first}")
