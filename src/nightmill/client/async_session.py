"""`Client` for asyncio: the same operations, awaited.

What gives one thing after the other is read by `async for`. Rows and answers pass through files, as in
`session`. Between rows the event loop gets its turn.
"""

import asyncio
import tempfile
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast, overload

from openai import AsyncOpenAI, omit
from openai.types import FileObject
from typing_extensions import Unpack

from nightmill.client import download, session
from nightmill.client.answer_types import AnswerType
from nightmill.client.answers import Answer, joined
from nightmill.client.api import ApiKeyAuth, AsyncBatchApi, Batch, CreateBatchRequest, connection
from nightmill.client.error_family import AWAY, AsyncServer, Server
from nightmill.client.frames import Frame, is_frame, with_answers
from nightmill.client.logs import AsyncLogApi
from nightmill.client.polling import Polling
from nightmill.client.request_rows import RequestFile, SubmitArguments, only_model
from nightmill.client.results import PATIENCE_S, FollowedLine, Outcome, WantedResults
from nightmill.client.retries import AsyncRetryApi
from nightmill.client.submission import (
    AnyRows,
    OnChange,
    Submission,
    answer_file_ids,
    answer_type_of,
    note_where_it_goes_on,
)
from nightmill.client.upload_guard import discarded_if_refused_async
from nightmill.client.upstreams import AsyncUpstreamApi
from nightmill.core.batch import TERMINAL
from nightmill.core.batch_options import BatchOptions
from nightmill.errors import UnavailableError

T = TypeVar("T")
FrameT = TypeVar("FrameT", bound=Frame)

_ROWS_PER_TURN = 100


class AsyncClient:
    """`Client` for asyncio: the same operations, awaited.

    Args:
        base_url: up to and with `/v1`; else `OPENAI_BASE_URL`, else nightmill on this machine.
        auth: the key as an object that `repr` does not show.
        api_key: the key; else `OPENAI_API_KEY`. A server without keys ignores it.

    Example:
        ```python
        import asyncio

        from nightmill import AsyncClient

        async def main() -> None:
            async with AsyncClient() as client:
                async for answer in client.send(["Peru", "Laos"], prompt="A river in {text}?", model="m"):
                    print(answer.text)

        asyncio.run(main())
        ```
    """

    def __init__(
        self,
        base_url: str | None = None,
        auth: ApiKeyAuth | None = None,
        *,
        api_key: str | None = None,
    ) -> None:
        self._connection = connection(base_url, auth, api_key)
        self.openai: AsyncOpenAI = AsyncServer(**self._connection)
        self.api = AsyncBatchApi(openai_client=self.openai)
        self.input = self.api.input
        self.insight = self.api.insight
        self.logs = AsyncLogApi(self.openai)
        self.retries = AsyncRetryApi(self.openai)
        self.steering = self.api.steering
        self.upstreams = AsyncUpstreamApi(self.openai)
        self.webhooks = self.api.webhooks

    async def close(self) -> None:
        await self.openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def upload(self, path: str | PathLike[str], *, purpose: str = "batch") -> FileObject:
        """Uploads a file, streamed from disk; one too large for a single request goes in parts."""
        path = Path(path)
        known = cast("Literal['batch']", purpose)
        if (await asyncio.to_thread(path.stat)).st_size <= session.LARGEST_SINGLE_BYTES:
            stream = await asyncio.to_thread(path.open, "rb")
            try:
                return await self.openai.files.create(file=stream, purpose=known)
            finally:
                stream.close()
        upload = await self.openai.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose=known, part_size=session.PART_BYTES
        )
        if upload.file is None:
            raise UnavailableError(f"{upload.id} was completed without a file; try again")
        return upload.file

    async def files(self, *, purpose: str | None = None) -> AsyncIterator[FileObject]:
        """Every file, newest first, page by page."""
        async for file in self.openai.files.list(purpose=omit if purpose is None else purpose):
            yield file

    async def submit_file(
        self,
        path: str | PathLike[str],
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        options: BatchOptions | None = None,
    ) -> Batch:
        """Uploads a JSONL file of request lines and creates its batch."""
        uploaded = await self.upload(path)
        request = CreateBatchRequest(
            input_file_id=uploaded.id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            priority=priority,
            options=options,
        )
        async with discarded_if_refused_async(self.openai, uploaded.id):
            return await self.api.create_batch(request)

    async def submit(
        self,
        rows: AnyRows | Frame,
        *,
        answer_type: type[Any] | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Batch:
        """As `Client.submit`; the rows may also be an `AsyncIterable`."""
        return await self._submitted(rows, answer_type_of(answer_type), arguments)

    async def _submitted(
        self, rows: AnyRows | Frame, answer_type: AnswerType[Any] | None, arguments: SubmitArguments
    ) -> Batch:
        submission = Submission.of(rows, arguments, answer_type)
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            path = Path(folder) / "requests.jsonl"
            with RequestFile(path, submission) as file:
                async for row in _in_turns(submission.rows(rows)):
                    if submission.needs_model(row):
                        models = [model.id async for model in self.openai.models.list()]
                        submission.model = only_model(models)
                    file.add(row)
            endpoint = file.endpoint
            uploaded = await self.upload(path)
            async with discarded_if_refused_async(self.openai, uploaded.id):
                return await self.api.create_batch(submission.request(uploaded.id, endpoint))

    async def wait(
        self, batch_id: str, *, timeout_s: float | None = None, on_change: OnChange | None = None
    ) -> Batch:
        """As `Client.wait`."""
        if on_change is not None:

            async def report(batch: Batch) -> None:
                on_change(batch)

            return await self._waited(batch_id, timeout_s, report, _nothing)
        # What is shown of a batch is read by several requests, in a thread.
        with Server(**self._connection) as openai, session.reporting(None, openai) as (show, show_away):
            return await self._waited(
                batch_id,
                timeout_s,
                lambda batch: asyncio.to_thread(show, batch),
                lambda: asyncio.to_thread(show_away),
            )

    async def _waited(
        self,
        batch_id: str,
        timeout_s: float | None,
        report: Callable[[Batch], Awaitable[None]],
        report_away: Callable[[], Awaitable[None]],
    ) -> Batch:
        batch = await self.api.retrieve_batch(batch_id)
        polling = Polling(
            batch,
            timeout_s=timeout_s,
            first_s=session.FIRST_POLL_S,
            longest_s=session.LONGEST_POLL_S,
            patience_s=PATIENCE_S,
        )
        await report(batch)
        while batch.status not in TERMINAL:
            await asyncio.sleep(polling.pause_s(batch))
            try:
                batch = await self.api.retrieve_batch(batch_id)
            except AWAY:
                if polling.is_hopeless:
                    raise
                await report_away()
                continue
            polling.succeeded()
            await report(batch)
        return batch

    @overload
    def answers(self, batch: Batch | str, *, answer_type: type[T]) -> AsyncGenerator[Answer[T]]: ...

    @overload
    def answers(self, batch: Batch | str, *, answer_type: None = None) -> AsyncGenerator[Answer]: ...

    async def answers(
        self, batch: Batch | str, *, answer_type: type[Any] | None = None
    ) -> AsyncGenerator[Answer[Any]]:
        """As `Client.answers`; what that raises at once comes with the first answer."""
        batch = await self.api.retrieve_batch(batch) if isinstance(batch, str) else batch
        async for answer in self._answers(batch, answer_type_of(answer_type)):
            yield answer

    async def _answers(
        self, batch: Batch, answer_type: AnswerType[Any] | None
    ) -> AsyncGenerator[Answer[Any]]:
        file_ids = answer_file_ids(batch)
        with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
            requests = Path(folder) / "requests.jsonl"
            await download.save_async(self.openai, batch.input_file_id, requests)
            files = [Path(folder) / f"answers-{number}.jsonl" for number in range(len(file_ids))]
            for file_id, path in zip(file_ids, files, strict=True):
                await download.save_async(self.openai, file_id, path)
            answers = joined(requests, *files)
            async for answer in _in_turns(answers if answer_type is None else answer_type.parsed(answers)):
                yield answer

    @overload
    def send(
        self,
        rows: FrameT,
        *,
        answer_type: type[Any] | None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Coroutine[Any, Any, FrameT]: ...

    @overload
    def send(
        self,
        rows: AnyRows,
        *,
        answer_type: type[T],
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> AsyncGenerator[Answer[T]]: ...

    @overload
    def send(
        self,
        rows: AnyRows,
        *,
        answer_type: None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> AsyncGenerator[Answer]: ...

    def send(
        self,
        rows: AnyRows | Frame,
        *,
        answer_type: type[Any] | None = None,
        timeout_s: float | None = None,
        on_change: OnChange | None = None,
        **arguments: Unpack[SubmitArguments],
    ) -> Any:
        """As `Client.send`: of rows, answers to read by `async for`; of a DataFrame, one to `await`."""
        typed = answer_type_of(answer_type)
        answers = self._sent(rows, typed, arguments, timeout_s=timeout_s, on_change=on_change)
        return _frame_of(rows, answers, typed) if is_frame(rows) else answers

    async def _sent(
        self,
        rows: AnyRows | Frame,
        answer_type: AnswerType[Any] | None,
        arguments: SubmitArguments,
        *,
        timeout_s: float | None,
        on_change: OnChange | None,
    ) -> AsyncGenerator[Answer[Any]]:
        batch = await self._submitted(rows, answer_type, arguments)
        try:
            batch = await self.wait(batch.id, timeout_s=timeout_s, on_change=on_change)
        except BaseException as error:
            note_where_it_goes_on(error, batch.id)
            raise
        async for answer in self._answers(batch, answer_type):
            yield answer

    def follow(
        self,
        batch_id: str,
        *,
        after: str | None = None,
        outcome: Outcome | None = None,
        codes: Sequence[str] = (),
        custom_ids: Sequence[str] = (),
        patience_s: float = PATIENCE_S,
    ) -> AsyncGenerator[FollowedLine]:
        """As `Client.follow`."""
        wanted = WantedResults(after=after, outcome=outcome, codes=codes, custom_ids=custom_ids)
        return self.api.follow(batch_id, wanted, patience_s=patience_s)

    def lines(self, file_id: str) -> AsyncIterator[bytes]:
        """The lines of a file as they arrive."""
        return download.lines_async(download.chunks_async(self.openai, file_id))

    async def save(self, file_id: str, path: str | PathLike[str]) -> int:
        """Downloads a file; `path` appears only when the file is complete. Returns its size in bytes."""
        return await download.save_async(self.openai, file_id, Path(path))


async def _nothing() -> None: ...


async def _frame_of(
    frame: Frame, answers: AsyncIterable[Answer[Any]], answer_type: AnswerType[Any] | None
) -> Any:
    return with_answers(frame, [answer async for answer in answers], answer_type)


async def _in_turns(rows: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T]:
    """The rows, of which many would otherwise keep the event loop from other tasks."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
        return
    for number, row in enumerate(rows):
        if number % _ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
        yield row
