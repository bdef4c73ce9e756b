"""DataFrames of pandas or polars: their rows as requests, and answers as columns or as a new DataFrame.

Neither library is required. A DataFrame that is given names its library; a new one is of the library that the
program has imported, else of one that is installed.
"""

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeGuard, cast

from nightmill.client.answer_types import AnswerType
from nightmill.client.answers import Answer
from nightmill.errors import RequestError, SetupError

Library: TypeAlias = Literal["pandas", "polars"]

ANSWER: Final = "answer"
ERROR: Final = "error"
_LIBRARIES: Final[tuple[Library, ...]] = ("pandas", "polars")


class Frame(Protocol):
    """A DataFrame, as far as pandas and polars agree."""

    @property
    def columns(self) -> Any:
        """The names of the columns."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        ...


def is_frame(rows: object) -> TypeGuard[Frame]:
    """Whether `rows` is a DataFrame.

    Raises:
        RequestError: it is a LazyFrame, which has no rows yet.
    """
    kind = type(rows)
    if kind.__module__.partition(".")[0] not in _LIBRARIES:
        return False
    if kind.__name__ == "LazyFrame":
        raise RequestError("a LazyFrame has no rows yet; pass lazy_frame.collect()")
    return kind.__name__ == "DataFrame"


def prompt_for(frame: Frame, prompt: str | None) -> str | None:
    """The prompt of the rows of a DataFrame: with a column `text` and no bodies, the text itself."""
    columns = set(map(str, frame.columns))
    has_bodies = columns & {"body", "messages", "input"}
    return "{text}" if prompt is None and "text" in columns and not has_bodies else prompt


def rows_of(frame: Frame, *, prompt: str | None) -> Iterator[dict[str, Any]]:
    """The rows as fields for a prompt, or without one as bodies or request lines.

    A missing value (null, NaN) is None in a field, and left out of a body. Values are Python's own types.
    """
    names = [str(name) for name in frame.columns]
    for values in _tuples(frame):
        row = {name: _plain(value) for name, value in zip(names, values, strict=True)}
        yield row if prompt is not None else {name: value for name, value in row.items() if value is not None}


def with_answers(
    frame: Frame, answers: Iterable[Answer[Any]], answer_type: AnswerType[Any] | None = None
) -> Any:
    """A copy of the DataFrame with the answers of its rows as columns.

    The columns are `answer` (a text or an embedding), or one for each field of the type, and `error`.
    """
    columns = _columns(answers, answer_type)
    if _library_of(frame) == "pandas":
        return cast("Any", frame).assign(**columns)
    polars: Any = importlib.import_module("polars")
    series = [
        polars.Series(name, values, dtype=polars.String if name == ERROR else None, strict=False)
        for name, values in columns.items()
    ]
    return cast("Any", frame).with_columns(*series)


def to_frame(answers: Iterable[Answer[Any]], *, library: Library | None = None) -> Any:
    """A DataFrame with a row for each answer: `custom_id`, `answer`, `error` and `status_code`.

    Answers with an instance of a type have it in the column `answer`, as JSON has it.

    Args:
        library: `pandas` or `polars`; None takes the one that the program has imported, else one that is
            installed.

    Raises:
        SetupError: neither is installed.

    Example:
        ```python
        from nightmill import Client, to_frame

        with Client() as client:
            batch = client.wait(client.submit(["Peru", "Laos"], model="llama3.2").id)
            print(to_frame(client.answers(batch)))
        ```
    """
    library = library or _installed()
    kept = list(answers)
    columns: dict[str, list[Any]] = {
        "custom_id": [answer.custom_id for answer in kept],
        ANSWER: [_value(answer) for answer in kept],
        ERROR: [answer.error_message for answer in kept],
        "status_code": [answer.status_code for answer in kept],
    }
    module: Any = importlib.import_module(library)
    if library == "pandas":
        return module.DataFrame(columns)
    return module.DataFrame(columns, strict=False)


def _columns(answers: Iterable[Answer[Any]], answer_type: AnswerType[Any] | None) -> dict[str, list[Any]]:
    names: Sequence[str] = (ANSWER,) if answer_type is None or not answer_type.fields else answer_type.fields
    columns: dict[str, list[Any]] = {name: [] for name in (*names, ERROR)}
    for answer in answers:
        row: Mapping[str, Any] = {ANSWER: _value(answer)}
        if answer_type is not None and answer_type.fields:
            row = {} if answer.parsed is None else answer_type.row(answer.parsed)
        for name in names:
            columns[name].append(row.get(name))
        columns[ERROR].append(answer.error_message)
    return columns


def _value(answer: Answer[Any]) -> Any:
    if not answer.is_ok:
        return None
    if answer.parsed is not None:
        dump = getattr(answer.parsed, "model_dump", None)
        return answer.parsed if dump is None else dump(mode="json", by_alias=True)
    text = answer.text
    return answer.vector if text is None else text


def _tuples(frame: Frame) -> Iterator[tuple[Any, ...]]:
    either = cast("Any", frame)
    return either.itertuples(index=False, name=None) if _library_of(frame) == "pandas" else either.iter_rows()


def _plain(value: Any) -> Any:
    """A value of Python: numpy's own can't be written as JSON. None for a missing one."""
    if value is None or isinstance(value, str | bool | int):
        return value
    kind = cast("type[Any]", type(value))
    if kind.__module__.partition(".")[0] == "numpy":
        value = value.tolist()
    # NaN is not equal to itself; pandas' NA and NaT are missing too.
    if kind.__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value


def _library_of(frame: Frame) -> Library:
    return "pandas" if type(frame).__module__.partition(".")[0] == "pandas" else "polars"


def _installed() -> Library:
    for library in _LIBRARIES:
        if library in sys.modules:
            return library
    for library in _LIBRARIES:
        if find_spec(library) is not None:
            return library
    raise SetupError("a DataFrame needs pandas or polars; pip install one of them")
