"""Typed answers: asks for JSON of a type, and makes instances of the answers.

A type is a pydantic model, or anything else that pydantic makes a JSON schema of (a dataclass, a TypedDict).
An answer that is not of the type is kept, as a failure. The messages never contain the answer.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from nightmill.client.answer_bodies import early_end_in
from nightmill.client.answers import Answer
from nightmill.client.request_rows import CHAT
from nightmill.errors import RequestError

T = TypeVar("T")

_MOST_PROBLEMS = 3


class AnswerType(Generic[T]):
    """A type of answers.

    Args:
        kind: the type, for instance a pydantic model.

    Attributes:
        fields: the names of its fields, as they are in the JSON; none if it is not an object.
    """

    def __init__(self, kind: type[T]) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)
        self._schema = self._adapter.json_schema()
        name = getattr(kind, "__name__", type(kind).__name__)
        self._name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
        self.fields = tuple(_root(self._schema).get("properties", ()))

    def parameters(self, endpoint: str) -> dict[str, Any]:
        """The fields of a body that ask for this type.

        Raises:
            RequestError: the endpoint gives no JSON.
        """
        schema = strict(self._schema)
        described = {"name": self._name, "schema": schema, "strict": _is_closed(schema)}
        if endpoint == CHAT:
            return {"response_format": {"type": "json_schema", "json_schema": described}}
        if endpoint == "/v1/responses":
            return {"text": {"format": {"type": "json_schema", **described}}}
        raise RequestError(f"{endpoint} has no typed answers; chat completions and responses have")

    def parsed(self, answers: Iterable[Answer[Any]]) -> Iterator[Answer[T]]:
        """The answers with their instances, one for each."""
        return map(self._parsed, answers)

    def row(self, value: T) -> dict[str, Any]:
        """The fields of an instance, as JSON has them."""
        dumped: object = self._adapter.dump_python(value, mode="json", by_alias=True)
        return cast("dict[str, Any]", dumped) if self.fields else {}

    def _parsed(self, answer: Answer[Any]) -> Answer[T]:
        if not answer.is_ok:
            return cast("Answer[T]", answer)
        text = answer.text
        early_end = early_end_in(answer.body)
        if text is None or early_end is not None:
            message = early_end or "the answer has no text"
            return replace(answer, error={"code": "incomplete_answer", "message": message})
        try:
            return cast("Answer[T]", replace(answer, parsed=self._adapter.validate_json(text)))
        except ValidationError as invalid:
            message = f"the answer is not a {self._name}: {_problems(invalid)}"
            return replace(answer, error={"code": "invalid_answer", "message": message})


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with every property required and no others allowed, as strict structured outputs want it.

    A default would never be used then, so it is left out.
    """
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "properties":
            made[name] = {field: strict(inner) for field, inner in value.items()}
            made["required"] = list(value)
            made.setdefault("additionalProperties", schema.get("additionalProperties", False))
        elif name in ("$defs", "definitions"):
            made[name] = {field: strict(inner) for field, inner in value.items()}
        elif name == "required" or name == "default":
            continue
        elif isinstance(value, Mapping) and name in ("items", "additionalProperties", "not"):
            made[name] = strict(cast("Mapping[str, Any]", value))
        elif isinstance(value, list) and name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            made[name] = [strict(inner) for inner in cast("list[Mapping[str, Any]]", value)]
        else:
            made[name] = value
    return made


def _is_closed(schema: object) -> bool:
    """Whether every object of the schema names its properties: only then a server can be strict."""
    if isinstance(schema, list):
        return all(map(_is_closed, cast("list[object]", schema)))
    if not isinstance(schema, Mapping):
        return True
    fields = cast("Mapping[str, Any]", schema)
    if fields.get("type") == "object" and fields.get("additionalProperties") is not False:
        return False
    return all(map(_is_closed, fields.values()))


def _root(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        return schema["$defs"][reference.removeprefix("#/$defs/")]
    return schema


def _problems(invalid: ValidationError) -> str:
    """The first problems in words, without what the answer says there."""
    found = invalid.errors(include_url=False, include_context=False, include_input=False)
    texts = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in found[:_MOST_PROBLEMS]
    ]
    more = f" (and {len(found) - _MOST_PROBLEMS} more)" if len(found) > _MOST_PROBLEMS else ""
    return "; ".join(texts) + more
