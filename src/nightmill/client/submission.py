"""What `Client` and `AsyncClient` share: how rows become a batch, and where its answers are. No I/O."""

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self, TypeAlias, cast

from openai.types import BatchError

from nightmill.client.answer_types import AnswerType
from nightmill.client.api import Batch, CreateBatchRequest
from nightmill.client.frames import Frame, is_frame, prompt_for, rows_of
from nightmill.client.request_rows import Row, RowFormat, SubmitArguments, refuse_unknown
from nightmill.core.batch import TERMINAL
from nightmill.core.batch_options import BatchOptions
from nightmill.errors import RequestError, UnavailableError

Rows: TypeAlias = Iterable[Row | str]
AnyRows: TypeAlias = Rows | AsyncIterable[Row | str]
OnChange: TypeAlias = Callable[[Batch], None]


@dataclass(slots=True, kw_only=True)
class Submission(RowFormat):
    """How rows become request lines, and these a batch; the fields are those of `SubmitArguments`."""

    completion_window: str = "24h"
    metadata: Mapping[str, str] | None = None
    priority: int | None = None
    options: BatchOptions | None = None

    @classmethod
    def of(
        cls, rows: AnyRows | Frame, arguments: SubmitArguments, answer_type: AnswerType[Any] | None
    ) -> Self:
        refuse_unknown(arguments, SubmitArguments.__optional_keys__)
        made = cls(**arguments)
        if is_frame(rows):
            made.prompt = prompt_for(rows, made.prompt)
        if answer_type is not None:
            made.parameters_of = answer_type.parameters
        return made

    def request(self, input_file_id: str, endpoint: str) -> CreateBatchRequest:
        return CreateBatchRequest(
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=self.completion_window,
            metadata=self.metadata,
            priority=self.priority,
            options=self.options,
        )

    def rows(self, given: AnyRows | Frame) -> AnyRows:
        """The rows, those of a DataFrame as fields.

        Raises:
            RequestError: it is one row, not several.
        """
        if is_frame(given):
            return rows_of(given, prompt=self.prompt)
        if isinstance(given, PathLike):
            raise RequestError("rows are not read from a path; send a JSONL file with submit_file")
        if isinstance(given, str | bytes | Mapping):
            raise RequestError("pass a list of rows, not one row")
        return cast("AnyRows", given)


def answer_type_of(kind: type[Any] | None) -> AnswerType[Any] | None:
    return None if kind is None else AnswerType(kind)


def answer_file_ids(batch: Batch) -> tuple[str, ...]:
    """The files that hold the answers of an ended batch.

    Raises:
        RequestError: the batch failed validation; the message holds the first error.
        UnavailableError: the batch has not ended yet.
    """
    if batch.status not in TERMINAL:
        message = f"{batch.id} is {batch.status}; wait for it to end before its answers are read"
        raise UnavailableError(message)
    if batch.status == "failed":
        listed = (batch.errors.data if batch.errors else None) or []
        raise RequestError(f"{batch.id} failed{_bad_lines(listed)}")
    return tuple(file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id)


def _bad_lines(listed: Sequence[BatchError]) -> str:
    """How many lines are bad, and the first reason; a reason that concerns the whole file has no line."""
    if not listed:
        return ""
    first = listed[0]
    if first.line is None:
        return f": {first.message}"
    count = "1 bad line" if len(listed) == 1 else f"{len(listed)} bad lines"
    return f" with {count}; line {first.line}: {first.message}"


def note_where_it_goes_on(error: BaseException, batch_id: str) -> None:
    """Adds to an error that ends the wait for a batch that the batch itself has not ended."""
    error.add_note(f"{batch_id} continues on the server; read it later with client.answers('{batch_id}')")
