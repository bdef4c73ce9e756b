"""Makes request lines of whole request lines, bodies, texts, or rows of fields with a prompt for them.

A text, or a row of fields where there is a prompt, becomes the body that the endpoint takes. In a prompt,
`{name}` stands for a field of the row, and `{text}` for a text. A prompt that names no field is put before
the text. Braces around anything else, such as JSON, stay as they are, and so does the inside of `{{name}}`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypedDict, cast

from nightmill.core.batch_options import BatchOptions
from nightmill.errors import RequestError

Row: TypeAlias = Mapping[str, Any]
"""A request line, a body, or the fields for a prompt."""

CHAT: Final = "/v1/chat/completions"
_RESPONSES: Final = "/v1/responses"
# The field of a body that holds the text, for the endpoints that take one.
_TEXT_FIELDS: Final = {
    _RESPONSES: "input",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/moderations": "input",
    "/v1/images/generations": "prompt",
    "/v1/videos": "prompt",
}
_TEXT: Final = "text"
_PLACEHOLDER: Final = re.compile(r"\{\{([^{}\"\n]+)\}\}|\{([^{}\"\n]+)\}")


class SubmitArguments(TypedDict, total=False):
    """What `submit` and `send` of a client take besides the rows.

    Attributes:
        prompt: makes a request of each text or row of fields; `{text}` stands for the text, `{name}` for the
            field `name`. A prompt that names no field is put before the text.
        model: of every body that has none. For texts and prompts, None takes the server's only model.
        parameters: fields of every body that does not have them, such as `{"temperature": 0}`.
        endpoint: None takes that of the first row, for texts and prompts chat completions.
        completion_window: how long the batch may take, for instance `24h`.
        metadata: kept with the batch.
        priority: from -10 to 10; only nightmill has it.
        options: what else only nightmill has, such as `BatchOptions(canary=20)`.
    """

    prompt: str | None
    model: str | None
    parameters: Row | None
    endpoint: str | None
    completion_window: str
    metadata: Mapping[str, str] | None
    priority: int | None
    options: BatchOptions | None


def refuse_unknown(arguments: Iterable[str], known: Iterable[str]) -> None:
    """Holds a call to the keys of its `TypedDict`, which else only type checkers do.

    Raises:
        TypeError: an argument is not known; the message has the nearest one.
    """
    names = sorted(known)
    for name in arguments:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            field_of_body = f"a field of the body goes into parameters={{'{name}': ...}}"
            hint = f"did you mean '{near[0]}'?" if near else field_of_body
            raise TypeError(f"there is no argument '{name}'; {hint}")


@dataclass(slots=True, kw_only=True)
class RowFormat:
    """How rows become request lines.

    Args:
        prompt, model, parameters, endpoint: as in `SubmitArguments`.
        parameters_of: further parameters, which depend on the endpoint.
    """

    prompt: str | None = None
    model: str | None = None
    parameters: Row | None = None
    endpoint: str | None = None
    parameters_of: Callable[[str], Row] | None = None

    def makes_body(self, row: Row | str) -> bool:
        """Whether the body is made of a text or of fields, not given."""
        return isinstance(row, str) or self.prompt is not None

    def needs_model(self, row: Row | str) -> bool:
        return self.model is None and self.makes_body(row) and "model" not in (self.parameters or {})

    def line(self, row: Row | str, number: int) -> dict[str, Any]:
        """The request line of the row with this number, counted from 1.

        Raises:
            RequestError: no body can be made of the row, or its endpoint is unknown.
        """
        given_row = cast("object", row)
        if not isinstance(given_row, str | Mapping):
            found = "has no value" if given_row is None else f"is of type {type(given_row).__name__}"
            raise RequestError(f"row {number} {found}; a row is a text or a mapping")
        if self.makes_body(row):
            fields: Row = {_TEXT: row} if isinstance(row, str) else row
            endpoint = self.endpoint or CHAT
            body = _body_of_text(endpoint, self._filled(fields, number))
            custom_id: object = fields.get("custom_id")
            given: Row = {} if custom_id is None else {"custom_id": str(custom_id)}
        else:
            whole = cast("Row", row)
            given = whole if isinstance(whole.get("body"), Mapping) else {"body": whole}
            body = dict(cast("Row", given["body"]))
            endpoint = self.endpoint or cast("str | None", given.get("url")) or _guessed(body)
        if self.endpoint is None or self.parameters_of is not None:
            self.endpoint = self.endpoint or endpoint
            self.parameters = {**self._of_endpoint(), **(self.parameters or {})}
        if self.model is not None:
            body.setdefault("model", self.model)
        for name, value in (self.parameters or {}).items():
            body.setdefault(name, value)
        return {
            "custom_id": given.get("custom_id", f"request-{number}"),
            "method": given.get("method", "POST"),
            "url": given.get("url", endpoint),
            "body": body,
        }

    def _of_endpoint(self) -> Row:
        """Asked for once: a batch has one endpoint."""
        if self.parameters_of is None or self.endpoint is None:
            return {}
        parameters_of, self.parameters_of = self.parameters_of, None
        return parameters_of(self.endpoint)

    def _filled(self, fields: Row, number: int) -> str:
        """The prompt with its placeholders replaced."""
        if self.prompt is None:
            return _value(fields, _TEXT, number)
        has_placeholder = False

        def replaced(found: re.Match[str]) -> str:
            nonlocal has_placeholder
            literal, name = found.groups()
            if literal is not None:
                return f"{{{literal}}}"
            if name in fields or name.isidentifier():
                has_placeholder = True
                return _value(fields, name, number)
            return found[0]

        filled = _PLACEHOLDER.sub(replaced, self.prompt)
        if has_placeholder:
            return filled
        if _TEXT not in fields:
            raise RequestError(
                f"name a field of the rows in the prompt, such as {{{next(iter(fields), _TEXT)}}}"
            )
        return f"{filled}\n\n{_value(fields, _TEXT, number)}"


class RequestFile:
    """A JSONL file of request lines that is being written.

    Raises:
        RequestError: on `endpoint`, if there are no rows.
    """

    def __init__(self, path: Path, row_format: RowFormat) -> None:
        self.format = row_format
        self._stream = path.open("wb")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def endpoint(self) -> str:
        if self.format.endpoint is None or not self._count:
            raise RequestError("there are no rows to send")
        return self.format.endpoint

    def add(self, row: Row | str) -> None:
        """Writes the request line of a row.

        Raises:
            RequestError: the row is not JSON, or its endpoint is unknown.
        """
        self._count += 1
        line = self.format.line(row, self._count)
        try:
            text = json.dumps(line, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RequestError(f"row {self._count} can't be written as JSON: {error}") from None
        self._stream.write(text.encode("ascii") + b"\n")


def only_model(models: list[str]) -> str:
    """The model of a server that has just one.

    Raises:
        RequestError: it has none, or several.
    """
    if len(models) == 1:
        return models[0]
    if not models:
        raise RequestError("the server names no model; pass model=")
    listed = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
    raise RequestError(f"the server has {len(models)} models; pass model=, one of: {listed}")


def _value(fields: Row, name: str, number: int) -> str:
    if name not in fields:
        has = ", ".join(map(str, fields))
        message = f"the prompt names {{{name}}}, but row {number} has only: {has}"
        raise RequestError(f"{message}; for the word in braces itself, double them")
    value: object = fields[name]
    if value is None:
        raise RequestError(f"row {number} has no value for '{name}'; leave the row out or fill it in")
    return str(value)


def _body_of_text(endpoint: str, text: str) -> dict[str, Any]:
    if endpoint == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    field = _TEXT_FIELDS.get(endpoint)
    if field is None:
        raise RequestError(f"no request to {endpoint} can be made of a text; pass bodies")
    return {field: text}


def _guessed(body: Row) -> str:
    if "messages" in body:
        return CHAT
    message = "the first row does not tell its endpoint; pass endpoint='/v1/...'"
    raise RequestError(f"{message}, or for fields a prompt")
