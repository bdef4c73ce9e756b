"""Sends rows, waits, and returns the answers joined to their requests: a batch in three calls or in one.

Uploads, creates, polls and downloads with `BatchApi` and the official `openai` package. Rows and answers pass
through files, so memory does not depend on their number. The same for asyncio is in `async_session`, the
display of progress in `progress`.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from time import sleep, time
from typing import Any, Literal, Self, TypeVar, cast, overload

from openai import OpenAI, omit
from openai.types import FileObject
from typing_extensions import Unpack

from nightmill.client import download
from nightmill.client.answer_types import AnswerType
from nightmill.client.answers import Answer, joined
from nightmill.client.api import ApiKeyAuth, Batch, BatchApi, CreateBatchRequest, connection
from nightmill.client.error_family import AWAY, Server
from nightmill.client.frames import Frame, is_frame, with_answers
from nightmill.client.logs import LogApi
from nightmill.client.polling import Polling
from nightmill.client.progress import Show, Snapshot, shown
from nightmill.client.request_rows import RequestFile, SubmitArguments, only_model
from nightmill.client.results import PATIENCE_S, FollowedLine, Outcome, WantedResults
from nightmill.client.retries import RetryApi
from nightmill.client.submission import (
    OnChange,
    Rows,
    Submission,
    answer_file_ids,
    answer_type_of,
    note_where_it_goes_on,
)
from nightmill.client.upload_guard import discarded_if_refused
from nightmill.client.upstreams import UpstreamApi
from nightmill.client.watching import SnapshotSource
from nightmill.core.batch import TERMINAL
from nightmill.core.batch_options import BatchOptions
from nightmill.errors import UnavailableError

T = TypeVar("T")
FrameT = TypeVar("FrameT", bound=Frame)

# OpenAI's limit for a batch file sent in one request; a server that takes larger ones takes them in parts.
LARGEST_SINGLE_BYTES = 209_715_200
PART_BYTES = 16 << 20
FIRST_POLL_S = 0.05
LONGEST_POLL_S = 3.0


class Client:
    """A client of one batch server.

    Args:
        base_url: up to and with `/v1`; else `OPENAI_BASE_URL`, else nightmill on this machine.
        auth: the key as an object that `repr` does not show.
        api_key: the key; else `OPENAI_API_KEY`. A server without keys ignores it.

    Attributes:
        openai: the `openai` client that sends the requests.
        api: the published batch operations by their own names, a `BatchApi`.
        input, insight, logs, retries, steering, upstreams, webhooks: what only a nightmill server has; see
            `InputApi`, `InsightApi`, `LogApi`, `RetryApi`, `Steering`, `UpstreamApi` and `WebhookApi`.

    Example:
        ```python
        from nightmill import Client

        with Client(api_key="unused") as client:
            answers = client.send(["Peru", "Laos"], prompt="Name a river in {text}.", model="llama3.2")
            for answer in answers:
                print(answer.text)
        ```
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
        self.insight = self.api.insight
        self.logs = LogApi(self.openai)
        self.retries = RetryApi(self.openai)
        self.steering = self.api.steering
        self.upstreams = UpstreamApi(self.openai)
        self.webhooks = self.api.webhooks

    def close(self) -> None:
        """Closes the connections; `with Client() as client` does so at its end."""
        self.openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def upload(self, path: str | PathLike[str], *, purpose: str = "batch") -> FileObject:
        """Uploads a file, streamed from disk; one too large for a single request goes in parts."""
        path = Path(path)
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
        path: str | PathLike[str],
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        options: BatchOptions | None = None,
    ) -> Batch:
        """Uploads a JSONL file of request lines and creates its batch. If that is refused, the upload is
        deleted."""
        uploaded = self.upload(path)
        request = CreateBatchRequest(
            input_file_id=uploaded.id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            priority=priority,
            options=options,
        )
        with discarded_if_refused(self.openai, uploaded.id):
            return self.api.create_batch(request)

    def submit(
        self,
        rows: Rows | Frame,
        *,
        answer_type: type[Any] | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Batch:
        """Sends rows as a new batch and returns at once.

        Args:
            rows: whole request lines, bodies, texts, or with a `prompt` fields; or a DataFrame.
            answer_type: asks for JSON of this type.
            arguments: see `SubmitArguments`.

        Raises:
            RequestError: a row can't be sent, or the server refuses the batch.
        """
        return self._submitted(rows, answer_type_of(answer_type), arguments)

    def _submitted(
        self, rows: Rows | Frame, answer_type: AnswerType[Any] | None, arguments: SubmitArguments
    ) -> Batch:
        submission = Submission.of(rows, arguments, answer_type)
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            path = Path(folder) / "requests.jsonl"
            with RequestFile(path, submission) as file:
                for row in cast("Rows", submission.rows(rows)):
                    if submission.needs_model(row):
                        submission.model = only_model([model.id for model in self.openai.models.list()])
                    file.add(row)
            endpoint = file.endpoint
            uploaded = self.upload(path)
            with discarded_if_refused(self.openai, uploaded.id):
                return self.api.create_batch(submission.request(uploaded.id, endpoint))

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
            UnavailableError: the time is over, or the server was unreachable for two minutes. The batch
                continues on the server.
            RequestError: the server refused.
        """
        with reporting(on_change, self.openai) as (report, report_away):
            batch = self.api.retrieve_batch(batch_id)
            polling = Polling(
                batch,
                timeout_s=timeout_s,
                first_s=FIRST_POLL_S,
                longest_s=LONGEST_POLL_S,
                patience_s=PATIENCE_S,
            )
            report(batch)
            while batch.status not in TERMINAL:
                sleep(polling.pause_s(batch))
                try:
                    batch = self.api.retrieve_batch(batch_id)
                except AWAY:
                    if polling.is_hopeless:
                        raise
                    report_away()
                    continue
                polling.succeeded()
                report(batch)
            return batch

    @overload
    def answers(self, batch: Batch | str, *, answer_type: type[T]) -> Iterator[Answer[T]]: ...

    @overload
    def answers(self, batch: Batch | str, *, answer_type: None = None) -> Iterator[Answer]: ...

    def answers(self, batch: Batch | str, *, answer_type: type[Any] | None = None) -> Iterator[Answer[Any]]:
        """The answers of an ended batch, joined to the lines of its input file, in their order.

        Args:
            answer_type: makes an instance of this type of each answer; one that is not of it is a failure.

        Raises:
            RequestError: the batch failed validation; the message holds the first error.
            UnavailableError: the batch has not ended yet.
        """
        batch = self.api.retrieve_batch(batch) if isinstance(batch, str) else batch
        return self._answers(batch, answer_type_of(answer_type))

    def _answers(self, batch: Batch, answer_type: AnswerType[Any] | None) -> Iterator[Answer[Any]]:
        answers = self._joined(batch, answer_file_ids(batch))
        return answers if answer_type is None else answer_type.parsed(answers)

    def _joined(self, batch: Batch, file_ids: Sequence[str]) -> Iterator[Answer]:
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            requests = Path(folder) / "requests.jsonl"
            download.save(self.openai, batch.input_file_id, requests)
            files = [Path(folder) / f"answers-{number}.jsonl" for number in range(len(file_ids))]
            for file_id, path in zip(file_ids, files, strict=True):
                download.save(self.openai, file_id, path)
            yield from joined(requests, *files)

    @overload
    def send(
        self,
        rows: FrameT,
        *,
        answer_type: type[Any] | None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> FrameT: ...

    @overload
    def send(
        self,
        rows: Rows,
        *,
        answer_type: type[T],
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Iterator[Answer[T]]: ...

    @overload
    def send(
        self,
        rows: Rows,
        *,
        answer_type: None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Iterator[Answer]: ...

    def send(
        self,
        rows: Rows | Frame,
        *,
        answer_type: type[Any] | None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Any:
        """Sends rows, waits with a progress bar and returns the answers: `submit`, `wait`, `answers`.

        Args:
            rows: as for `submit`.
            answer_type: a pydantic model, or another type that JSON can have. Asks for JSON of this type and
                makes an instance of each answer, in `parsed`; an answer that is not of the type is a failure.
            timeout_s, on_change: as for `wait`.
            arguments: see `SubmitArguments`.

        Returns:
            An answer for each row, in their order. Of a DataFrame a copy with the columns `answer` (or one
            for each field of the type) and `error`; columns of these names are replaced.

        Raises:
            RequestError: a row can't be sent, the server refuses the batch, or a line is invalid.
            UnavailableError: as for `wait`.

        Example:
            ```python
            from pydantic import BaseModel

            from nightmill import Client

            class River(BaseModel):
                name: str
                length_km: int

            with Client() as client:
                rivers = client.send(["Peru"], prompt="A river in {text}?", model="m", answer_type=River)
                for answer in rivers:
                    print(answer.parsed or answer.error_message)
            ```
        """
        typed = answer_type_of(answer_type)
        batch = self._submitted(rows, typed, arguments)
        try:
            batch = self.wait(batch.id, timeout_s=timeout_s, on_change=on_change)
        except BaseException as error:
            note_where_it_goes_on(error, batch.id)
            raise
        answers = self._answers(batch, typed)
        return with_answers(rows, answers, typed) if is_frame(rows) else answers

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
        """Each output line once, as it is answered, until the batch has ended. Only nightmill has this.

        Args:
            after: the cursor of the last line that you have.
            outcome, codes, custom_ids: only lines that match all that are given.
            patience_s: how long the server may be unreachable.

        Raises:
            UnavailableError: the server was unreachable for longer, or could not read the lines.
            RequestError: the server refused, or lines that were not given yet have been deleted.
        """
        wanted = WantedResults(after=after, outcome=outcome, codes=codes, custom_ids=custom_ids)
        return self.api.follow(batch_id, wanted, patience_s=patience_s)

    def lines(self, file_id: str) -> Iterator[bytes]:
        """The lines of a file as they arrive."""
        return download.lines(download.chunks(self.openai, file_id))

    def save(self, file_id: str, path: str | PathLike[str]) -> int:
        """Downloads a file; `path` appears only when the file is complete. Returns its size in bytes."""
        return download.save(self.openai, file_id, Path(path))


class _Display:
    """Shows a batch as it was read last, and for how long its server has been away."""

    def __init__(self, openai: OpenAI, show: Show) -> None:
        self._source = SnapshotSource(openai)
        self._show = show
        self._last: Snapshot | None = None
        self._seen_at = time()

    def report(self, batch: Batch) -> None:
        self._seen_at = time()
        self._last = self._source.of(batch)
        self._show(self._last)

    def away(self) -> None:
        if self._last is not None:
            self._show(replace(self._last, away_since=self._seen_at))


@contextmanager
def reporting(on_change: OnChange | None, openai: OpenAI) -> Generator[tuple[OnChange, Callable[[], None]]]:
    """What is called with a batch that was read, and when its server is away."""
    if on_change is not None:
        yield on_change, lambda: None
        return
    with shown() as show:
        display = _Display(openai, show)
        yield display.report, display.away
