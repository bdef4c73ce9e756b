"""Rows in `nightmill.run`: their request lines in a file, and the answers of that file joined to them.

With an output file the request lines are beside it, so that the run goes on after an interruption and sends
nothing once it is finished. Without one everything is in a temporary folder.
"""

import filecmp
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from nightmill.client.answer_types import AnswerType
from nightmill.client.answers import Answer, joined
from nightmill.client.frames import Frame, is_frame, with_answers
from nightmill.client.request_rows import RequestFile, Row
from nightmill.client.submission import AnyRows, Rows, Submission
from nightmill.errors import RequestError, UnavailableError
from nightmill.runtime.run_file import GO_ON, RunSummary
from nightmill.runtime.run_files import RunFiles


class LocalRows:
    """Rows, or a DataFrame, that are answered without a server.

    Args:
        prompt, parameters, endpoint: as for `Client.send`.
        model: of rows that name none.
        answer_type: asks for JSON of this type.
    """

    def __init__(
        self,
        rows: "Rows | Frame",
        *,
        prompt: str | None,
        model: str | None,
        parameters: Row | None,
        endpoint: str | None,
        answer_type: type[Any] | None,
    ) -> None:
        self._given = rows
        self._type = None if answer_type is None else AnswerType(answer_type)
        self._submission = Submission.of(
            rows,
            {"prompt": prompt, "model": model, "parameters": parameters, "endpoint": endpoint},
            self._type,
        )

    def answered(
        self,
        run: Callable[[RunFiles, str], RunSummary],
        *,
        output: Path | None,
        errors: Path | None,
    ) -> Any:
        """The answers, in the order of the rows; of a DataFrame a copy with them.

        Args:
            run: answers the lines of the input for an endpoint.

        Raises:
            RequestError: a row can't be sent, or its line is invalid.
        """
        with _files(output, errors) as files:
            endpoint = self._write(files.input)
            try:
                summary = run(files, endpoint)
            except UnavailableError as error:
                if output is not None:
                    raise
                said = str(error).replace(str(files.input), "the run").removesuffix(f"; {GO_ON}")
                raise UnavailableError(f"{said}; without output= nothing is kept to go on with") from None
            if summary.errors:
                first = summary.errors[0]
                place = "" if first.line is None else f" row {first.line}:"
                raise RequestError(f"no row was sent, because some are invalid;{place} {first.message}")
            answers = _answers(files, self._type)
        return with_answers(self._given, answers, self._type) if is_frame(self._given) else answers

    def _write(self, path: Path) -> str:
        """Writes the request lines. A file that has them already stays, with its time."""
        unfinished = path.with_name(f"{path.name}.part")
        try:
            with RequestFile(unfinished, self._submission) as file:
                for row in cast("Rows", self._rows()):
                    if self._submission.needs_model(row):
                        raise RequestError("the rows name no model; pass model_name=")
                    file.add(row)
            endpoint = file.endpoint
            if path.is_file() and filecmp.cmp(unfinished, path, shallow=False):
                return endpoint
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return endpoint

    def _rows(self) -> AnyRows:
        return self._submission.rows(self._given)


def _answers(files: RunFiles, answer_type: AnswerType[Any] | None) -> list[Answer[Any]]:
    paths = [path for path in (files.output, files.errors) if path.is_file()]
    answers = joined(files.input, *paths)
    return list(answers if answer_type is None else answer_type.parsed(answers))


@contextmanager
def _files(output: Path | None, errors: Path | None) -> Generator[RunFiles]:
    if output is not None:
        requests = output.with_name(f"{output.stem}_requests.jsonl")
        yield RunFiles(requests, output, errors or output.with_name(f"{output.stem}_error.jsonl"))
        return
    with tempfile.TemporaryDirectory(prefix="nightmill-") as name:
        folder = Path(name)
        yield RunFiles(folder / "requests.jsonl", folder / "output.jsonl", errors or folder / "error.jsonl")
