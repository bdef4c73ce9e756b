"""Texts in the form that a request asks for: OpenAI's structured outputs, and what vLLM has besides.

vLLM takes `structured_outputs` with `json`, `choice`, `regex` or `json_object`, and its older versions
`guided_json`, `guided_choice`, `guided_regex` and `guided_grammar`. A grammar is not followed: such a request
is refused.
"""

from typing import Any, cast

import msgspec
from msgspec import Raw, Struct

from nightmill.emulator.content import NOT_GIVEN, BadBodyError, is_given, made_up_text, object_of


class Guided(Struct, frozen=True):
    """The members of a request that only vLLM has; a base of the bodies of chat and text completions."""

    structured_outputs: Raw = NOT_GIVEN
    guided_json: Raw = NOT_GIVEN
    guided_choice: Raw = NOT_GIVEN
    guided_regex: Raw = NOT_GIVEN
    guided_grammar: Raw = NOT_GIVEN


def guided_text(asked: Guided, seed: bytes) -> str | None:
    """The text that vLLM's members ask for; None without any.

    Raises:
        BadBodyError: there is no such text, or the request asks for a grammar.
    """
    if (
        asked.structured_outputs is NOT_GIVEN
        and asked.guided_json is NOT_GIVEN
        and asked.guided_choice is NOT_GIVEN
        and asked.guided_regex is NOT_GIVEN
        and asked.guided_grammar is NOT_GIVEN
    ):
        return None  # nearly always, and quickly: the emulator is also the upstream of benchmarks
    if is_given(asked.structured_outputs):
        wanted = object_of(asked.structured_outputs)
    else:
        older = {
            "json": asked.guided_json,
            "choice": asked.guided_choice,
            "regex": asked.guided_regex,
            "grammar": asked.guided_grammar,
        }
        wanted = {name: msgspec.json.decode(raw) for name, raw in older.items() if is_given(raw)}
    schema = _schema_of({name: value for name, value in wanted.items() if value not in (None, False)})
    if schema is None:
        return None
    made = satisfying(msgspec.json.encode(schema), seed)
    return made if "json" in wanted or "json_object" in wanted else cast("str", msgspec.json.decode(made))


def _schema_of(wanted: dict[str, Any]) -> Any:
    match wanted:
        case {"json": str(text)}:
            return msgspec.json.decode(text)
        case {"json": schema}:
            return schema
        case {"json_object": _}:
            return {"type": "object", "properties": {"emulated": {"const": True}}, "required": ["emulated"]}
        case {"choice": choices}:
            return {"type": "string", "enum": choices}
        case {"regex": pattern}:
            return {"type": "string", "pattern": f"^(?:{pattern})$"}  # vLLM matches the whole text
        case {"grammar": _} | {"structural_tag": _}:
            raise BadBodyError("The emulator does not follow grammars; leave them out.")
        case _:
            return None


def satisfying(schema: bytes, seed: bytes) -> str:
    """A value that satisfies the schema, as JSON; raises BadBodyError if there is none."""
    # Loaded when the first schema comes: the emulator starts faster without.
    from nightmill.emulator.schema_sample import sample  # noqa: PLC0415 - see above

    return sample(schema, seed).decode()


def json_text(format_: Raw, seed: bytes) -> str | None:
    """The answer's text where the request asks for JSON; None where it asks for plain text.

    Args:
        format_: `response_format` of a chat completion, or `text.format` of a response.

    Raises:
        BadBodyError: there is no schema, or no answer that satisfies it.
    """
    if not is_given(format_):
        return None
    asked = object_of(format_)
    match asked.get("type", "text"):
        case "text":
            return None
        case "json_schema":
            return satisfying(_schema_in(format_), seed)
        case _:
            return msgspec.json.encode({"emulated": True, "answer": made_up_text(seed)}).decode()


class _SchemaHolder(Struct, frozen=True):
    schema: Raw = NOT_GIVEN


class _SchemaFormat(_SchemaHolder, frozen=True):
    json_schema: _SchemaHolder | None = None


_decode_format = msgspec.json.Decoder(_SchemaFormat).decode


def _schema_in(format_: Raw) -> bytes:
    asked = _decode_format(format_)
    schema = asked.schema if asked.json_schema is None else asked.json_schema.schema
    if not is_given(schema):
        raise BadBodyError("Missing required parameter: 'response_format.json_schema.schema'.")
    return bytes(schema)
